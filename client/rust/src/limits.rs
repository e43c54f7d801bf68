//! Limits of queues and keys: how many jobs run at once, how fast they begin, and who has how many
//! turns.

use ganger_protocol::{
    limit::{LimitList, LimitSet, LimitTarget, LimitView, LimitsReply, OneLimit},
    request::Operation,
    response::Done,
};

use crate::{Client, Error};

impl Client {
    /// Makes a limit, or replaces the one of the same queues or keys; it counts at once. The limit as
    /// it is now.
    ///
    /// # Errors
    /// When the server refuses a value, or has as many limits as it takes.
    ///
    /// ```no_run
    /// use ganger_client::protocol::{
    ///     DurationMs,
    ///     limit::{LimitSet, LimitTarget, Rate},
    /// };
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Each tenant has at most five jobs running, and begins at most a hundred a minute.
    /// let set = LimitSet {
    ///     max_running: Some(5),
    ///     rate: Some(Rate { n: 100, per_ms: DurationMs::from_mins(1), burst: None }),
    ///     ..LimitSet::of(LimitTarget::Key("tenant:*".parse()?))
    /// };
    /// client.set_limit(set).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_limit(&self, set: LimitSet) -> Result<LimitView, Error> {
        self.read(Operation::LimitSet(Box::new(set))).await
    }

    /// Shows a limit, and of one name how many jobs are running under it.
    ///
    /// # Errors
    /// When there is no limit of this target, or the server refuses.
    ///
    /// ```no_run
    /// use ganger_client::protocol::limit::LimitTarget;
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let limit = client.limit(LimitTarget::Queue("mail".parse()?)).await?;
    /// println!("{:?} of {:?} are running", limit.running, limit.max_running);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn limit(&self, target: LimitTarget) -> Result<LimitView, Error> {
        self.read(Operation::LimitShow(OneLimit::of(target))).await
    }

    /// Lists limits: those of queues, then those of keys, page by page.
    ///
    /// # Errors
    /// When the server refuses.
    ///
    /// ```no_run
    /// use ganger_client::protocol::limit::LimitList;
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let page = client.limits(LimitList { cursor: None, limit: 100 }).await?;
    /// for limit in page.limits {
    ///     println!("{limit:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn limits(&self, list: LimitList) -> Result<LimitsReply, Error> {
        self.read(Operation::LimitList(list)).await
    }

    /// Deletes a limit; who stood at it goes on at once.
    ///
    /// # Errors
    /// When there is no limit of this target, or the server refuses; [`Error::OutcomeUnknown`] when
    /// the connection broke before the answer.
    ///
    /// ```no_run
    /// use ganger_client::protocol::limit::LimitTarget;
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.delete_limit(LimitTarget::Key("tenant:*".parse()?)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_limit(&self, target: LimitTarget) -> Result<(), Error> {
        let operation = Operation::LimitDelete(OneLimit::of(target));
        let Done {} = self.read(operation).await?;
        Ok(())
    }
}
