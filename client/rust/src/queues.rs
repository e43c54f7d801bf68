//! Queues as a whole: pauses with an end, purges, settings, making and deleting them. Lists and
//! plain pauses are with the other requests of [`Client`].

use ganger_protocol::{
    DurationMs, QueueName,
    queue::{OneQueue, QueuePause, QueuePurgeReply, QueueReply, QueueSet},
    request::Operation,
    response::Done,
};

use crate::{Client, Error};

impl Client {
    /// Stops the grants of these queues for so long; the server starts them again by itself, over
    /// restarts too.
    ///
    /// # Errors
    /// When a queue has not been made, or the server refuses.
    ///
    /// ```no_run
    /// # use ganger_protocol::DurationMs;
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.pause_for(vec!["mail".parse()?], DurationMs::from_mins(10)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn pause_for(&self, queues: Vec<QueueName>, time: DurationMs) -> Result<(), Error> {
        self.pause_of(QueuePause {
            queues,
            for_ms: Some(time),
            until: None,
        })
        .await
    }

    pub(crate) async fn pause_of(&self, pause: QueuePause) -> Result<(), Error> {
        let Done {} = self.read(Operation::QueuePause(pause)).await?;
        Ok(())
    }

    /// Shows a queue with its settings.
    ///
    /// # Errors
    /// When the queue has not been made, or the server refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// println!("{}", client.queue("mail".parse()?).await?.queue.counters.ready);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn queue(&self, queue: QueueName) -> Result<QueueReply, Error> {
        self.read(Operation::QueueShow(OneQueue { queue })).await
    }

    /// Changes settings of a queue; the queue behind it.
    ///
    /// # Errors
    /// When the queue has not been made, or the server refuses a value.
    ///
    /// ```no_run
    /// use ganger_protocol::queue::{QueueSet, Setting};
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let set = QueueSet {
    ///     jobs_max: Setting::To(100_000),
    ///     ..QueueSet::of("mail".parse()?)
    /// };
    /// client.set_queue(set).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_queue(&self, set: QueueSet) -> Result<QueueReply, Error> {
        self.read(Operation::QueueSet(Box::new(set))).await
    }

    /// Makes a queue; one that there is already stays as it is. A push makes its queue by itself.
    ///
    /// # Errors
    /// When the server has as many queues as it takes, or refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.create_queue("mail".parse()?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create_queue(&self, queue: QueueName) -> Result<(), Error> {
        let Done {} = self
            .read(Operation::QueueCreate(OneQueue { queue }))
            .await?;
        Ok(())
    }

    /// Removes all jobs of a queue for good, leased and dead ones too; how many.
    ///
    /// # Errors
    /// When the queue has not been made, or the server refuses; [`Error::OutcomeUnknown`] when the
    /// connection broke before the answer: the purge is not sent again by itself.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// println!("{} jobs removed", client.purge("mail".parse()?).await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn purge(&self, queue: QueueName) -> Result<u64, Error> {
        let operation = Operation::QueuePurge(OneQueue { queue });
        let reply: QueuePurgeReply = self.read(operation).await?;
        Ok(reply.removed)
    }

    /// Deletes a queue that has no jobs, with its settings and counters.
    ///
    /// # Errors
    /// When the queue has jobs or has not been made, or the server refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.delete_queue("mail".parse()?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_queue(&self, queue: QueueName) -> Result<(), Error> {
        let Done {} = self
            .read(Operation::QueueDelete(OneQueue { queue }))
            .await?;
        Ok(())
    }
}
