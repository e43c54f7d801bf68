//! What a connection follows: its subscriptions, and the messages that tell it of events.
//!
//! The connection's own task reads the ring of its shard, when its socket takes more: nobody else waits
//! for a client that is slow. What is kept for it is the ring's, in [`crate::driver`].

use ganger_protocol::{
    ErrorCode, NamespaceName, WireError,
    event::{Event, Events, Subscribe, SubscribeReply, SubscriptionId, Unsubscribe},
    limits::CONNECTION_SUBSCRIPTIONS_MAX,
    request::Operation,
    response::{Done, Notice, ReplyBody},
};
use tokio::sync::watch;

use crate::driver::{Follower, Outbox, Shard};

/// The subscriptions of a connection.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    /// Changes when there are new events.
    news: watch::Receiver<u64>,
    followed: Vec<(SubscriptionId, Follower)>,
    /// The number of the next subscription.
    next: u64,
    /// Whether one of them may have something to tell already.
    has_more: bool,
}

impl Subscriptions {
    /// Subscribes, or ends a subscription.
    pub(super) fn serve(
        &mut self,
        shard: &Shard,
        namespace: NamespaceName,
        operation: Operation,
    ) -> Result<ReplyBody, WireError> {
        match operation {
            Operation::Subscribe(subscribe) => self.subscribe(shard, namespace, *subscribe),
            Operation::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe),
            other => Err(WireError::new(
                ErrorCode::UnsupportedOp,
                format!("{} is no subscription", other.op()),
            )),
        }
    }

    fn subscribe(
        &mut self,
        shard: &Shard,
        namespace: NamespaceName,
        subscribe: Subscribe,
    ) -> Result<ReplyBody, WireError> {
        let count = self.0.as_ref().map_or(0, |open| open.followed.len());
        if count >= CONNECTION_SUBSCRIPTIONS_MAX {
            let max = CONNECTION_SUBSCRIPTIONS_MAX;
            return Err(WireError {
                limit: Some(max as u64),
                actual: Some(count as u64 + 1),
                ..WireError::new(
                    ErrorCode::TooLarge,
                    format!("a connection has at most {max} subscriptions"),
                )
            });
        }
        let follower = shard.follow(namespace, subscribe)?;
        let stands = follower.stands();
        let open = self.0.get_or_insert_with(|| {
            Box::new(Open {
                news: shard.news(),
                followed: Vec::new(),
                next: 1,
                has_more: false,
            })
        });
        let subscription = SubscriptionId(open.next);
        open.next += 1;
        open.followed.push((subscription, follower));
        // One that goes on where it stood has something to read.
        open.has_more = true;
        Ok(ReplyBody::Subscribed(SubscribeReply {
            subscription,
            epoch: stands.epoch,
            offset: stands.offset,
        }))
    }

    fn unsubscribe(&mut self, unsubscribe: Unsubscribe) -> Result<ReplyBody, WireError> {
        let Unsubscribe { subscription } = unsubscribe;
        let open = self.0.as_mut();
        let nth = open.as_ref().and_then(|open| {
            let mut followed = open.followed.iter();
            followed.position(|(id, _)| *id == subscription)
        });
        match (open, nth) {
            (Some(open), Some(nth)) => {
                open.followed.remove(nth);
                Ok(ReplyBody::Done(Done {}))
            }
            (Some(_) | None, _) => Err(WireError {
                field: Some("subscription".to_owned()),
                ..WireError::new(
                    ErrorCode::NotFound,
                    format!("this connection has no subscription {}", subscription.0),
                )
            }),
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|open| open.followed.is_empty())
    }

    /// Waits until there may be something to tell. Cancel-safe.
    pub(super) async fn have_news(&mut self) {
        match &mut self.0 {
            Some(open) if !open.followed.is_empty() => {
                if !open.has_more && open.news.changed().await.is_err() {
                    // The shard is gone, and there are no news any more.
                    std::future::pending::<()>().await;
                }
            }
            Some(_) | None => std::future::pending().await,
        }
    }

    /// Tells each subscription once of what it may know. Nothing is sent.
    pub(super) fn tell(&mut self, outbox: &Outbox) {
        let Some(open) = &mut self.0 else { return };
        // Before anything is read: what comes behind that is news again.
        open.news.mark_unchanged();
        open.has_more = false;
        for (subscription, follower) in &mut open.followed {
            let (told, has_more) = follower.read();
            open.has_more |= has_more;
            let Some(told) = told else { continue };
            let events = told.events.iter().map(|event| Event::clone(event));
            outbox.notice(&Notice::Events(Box::new(Events {
                subscription: *subscription,
                gap: told.gap,
                events: events.collect(),
                next: told.next,
            })));
        }
    }
}
