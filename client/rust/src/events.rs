//! Following what happens: a [`Subscription`] has a connection of its own, from which it reads only
//! when it is asked for the next event. So whoever is slow holds up nobody but itself, and is told
//! what it missed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::BytesMut;
use ganger_protocol::{
    ErrorCode, WireError,
    event::{
        Event, EventFilter, Events, EventsFrom, Gap, Subscribe, SubscribeReply, SubscriptionId,
        Unsubscribe,
    },
    frame,
    limits::{FRAME_BYTES_MAX, REDIRECTS_MAX},
    request::{Operation, Request},
    response::{Message, Notice},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    Client,
    connection::Backoff,
    error::{ConnectError, Error},
    handshake::{self, Greeting, Opened, Unopened},
    in_flight::HELLO_ID,
    options::{Address, ClientOptions},
};

/// The id of the request that subscribes.
const SUBSCRIBE_ID: u64 = HELLO_ID + 1;

/// The id of a request that only finds out whether the server is still there.
const PROBE_ID: u64 = SUBSCRIBE_ID + 1;

impl Client {
    /// Follows what happens in the namespace from now on, as far as the filter means it. It opens a
    /// connection of its own, and makes it again by itself when it fails.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server refuses, for instance because the token may not see all that
    /// the filter means; [`Error::Unreachable`] when the first try to connect fails.
    ///
    /// ```no_run
    /// use ganger_client::{Followed, protocol::event::{EventFilter, EventName}};
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let filter = EventFilter {
    ///     events: vec![EventName::Failed, EventName::Dead],
    ///     queues: vec!["mail*".parse()?],
    ///     ..EventFilter::default()
    /// };
    /// let mut events = client.subscribe(filter).await?;
    /// loop {
    ///     match events.next().await? {
    ///         Followed::Event(event) => println!("{:?} {:?}", event.job, event.error_kind),
    ///         Followed::Gap(gap) => println!("missed {:?}", gap.missed),
    ///         _ => {}
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn subscribe(&self, filter: EventFilter) -> Result<Subscription, Error> {
        self.subscribe_with(Subscribe::to(filter)).await
    }

    /// As [`Client::subscribe`], from a place on at which another subscription stood.
    ///
    /// # Errors
    /// Those of [`Client::subscribe`].
    ///
    /// ```no_run
    /// use ganger_client::protocol::event::{EventFilter, Subscribe};
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// let events = client.subscribe(EventFilter::default()).await?;
    /// let from = Some(events.stands());
    /// drop(events);
    /// let again = Subscribe { from, ..Subscribe::default() };
    /// let events = client.subscribe_with(again).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn subscribe_with(&self, subscribe: Subscribe) -> Result<Subscription, Error> {
        let options = self.options().clone();
        let mut subscription = Subscription {
            address: options.address.clone(),
            options,
            filter: subscribe.filter,
            received: subscribe.from,
            stands: EventsFrom {
                epoch: 0,
                offset: 0,
            },
            pending: VecDeque::new(),
            link: None,
            backoff: Backoff::default(),
        };
        match subscription.connect().await {
            Ok(()) => Ok(subscription),
            Err(error) => Err(subscription.told(error)),
        }
    }
}

/// What comes out of a [`Subscription`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Followed {
    /// Something that happened.
    Event(Event),
    /// Events before the next one are lost: the subscription was too slow, or away for too long.
    Gap(Gap),
}

/// The events that a filter means, in the order in which they happened. Dropped, it ends.
#[derive(Debug)]
pub struct Subscription {
    options: ClientOptions,
    /// Where it connects to: another address than the options' behind a redirect.
    address: Address,
    filter: EventFilter,
    /// Where the next message of the server goes on; none before the first connection.
    received: Option<EventsFrom>,
    /// Where the user goes on.
    stands: EventsFrom,
    pending: VecDeque<Step>,
    link: Option<Link>,
    backoff: Backoff,
}

/// What a message of the server leads to.
#[derive(Debug)]
enum Step {
    Give(Followed),
    /// Everything before this offset was given.
    Stand(u64),
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    inbox: BytesMut,
    subscription: SubscriptionId,
    /// When something came last.
    heard_at: Instant,
    /// Whether the server was asked for a sign of life since.
    is_probed: bool,
}

impl Subscription {
    /// The next event, or what was missed before it. It waits as long as there is none, over lost
    /// connections and restarts of the server too. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server will not serve it any more, for instance because the token is
    /// gone.
    ///
    /// ```no_run
    /// # async fn example(mut events: ganger_client::Subscription) -> Result<(), ganger_client::Error> {
    /// println!("{:?}", events.next().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn next(&mut self) -> Result<Followed, Error> {
        loop {
            match self.pending.pop_front() {
                Some(Step::Give(followed)) => {
                    if let Followed::Event(event) = &followed {
                        self.stands.offset = event.offset + 1;
                    }
                    return Ok(followed);
                }
                Some(Step::Stand(offset)) => {
                    self.stands.offset = offset;
                    continue;
                }
                None => {}
            }
            let ended = match &mut self.link {
                Some(link) => link.next_events(self.options.request_timeout).await,
                None => match self.connect().await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            match ended {
                Ok(events) => self.take(events),
                Err(error) => {
                    self.link = None;
                    if error.is_permanent() {
                        return Err(self.told(error));
                    }
                    tracing::info!(address = %self.address, %error, "events are not followed");
                    sleep(self.backoff.next()).await;
                }
            }
        }
    }

    /// Where it stands behind the last event that was given: another one can go on there.
    ///
    /// ```no_run
    /// # async fn example(events: ganger_client::Subscription) {
    /// println!("{:?}", events.stands());
    /// # }
    /// ```
    pub fn stands(&self) -> EventsFrom {
        self.stands
    }

    fn take(&mut self, events: Events) {
        self.backoff = Backoff::default();
        let gap = events.gap.map(Followed::Gap);
        let given = events.events.into_iter().map(Followed::Event);
        self.pending
            .extend(gap.into_iter().chain(given).map(Step::Give));
        self.pending.push_back(Step::Stand(events.next));
        if let Some(received) = &mut self.received {
            received.offset = events.next;
        }
    }

    /// Connects and subscribes, going on where it stood.
    async fn connect(&mut self) -> Result<(), ConnectError> {
        for _ in 0..=REDIRECTS_MAX {
            let greeting = Greeting {
                producer: None,
                session: None,
            };
            match handshake::open(&self.options, &self.address, greeting).await {
                Ok(opened) => return self.begin(opened).await,
                Err(Unopened::Redirect(address)) => match address.parse() {
                    Ok(address) => self.address = address,
                    Err(error) => {
                        tracing::warn!(%error, address, "redirected to what is no address");
                    }
                },
                Err(Unopened::Failed(error)) => return Err(error),
            }
        }
        Err(ConnectError::Redirects)
    }

    async fn begin(&mut self, opened: Opened) -> Result<(), ConnectError> {
        let Opened { stream, inbox, .. } = opened;
        let mut link = Link {
            stream,
            inbox,
            subscription: SubscriptionId(0),
            heard_at: Instant::now(),
            is_probed: false,
        };
        let subscribe = Subscribe {
            filter: self.filter.clone(),
            from: self.received,
        };
        let after = self.options.request_timeout;
        let subscribed = timeout(after, link.subscribe(subscribe)).await;
        let reply = subscribed.map_err(|_elapsed| ConnectError::TimedOut { after })??;
        link.subscription = reply.subscription;
        let from = EventsFrom {
            epoch: reply.epoch,
            offset: reply.offset,
        };
        (self.received, self.stands) = (Some(from), from);
        self.link = Some(link);
        Ok(())
    }

    /// An error of a connection as that of a request.
    fn told(&self, error: ConnectError) -> Error {
        match error {
            ConnectError::Refused(refusal) => Error::Refused(refusal),
            error if error.is_permanent() => {
                Error::Refused(WireError::new(ErrorCode::Unauthorized, error.to_string()))
            }
            cause => Error::Unreachable {
                address: self.address.to_string(),
                cause,
            },
        }
    }
}

impl Link {
    async fn subscribe(&mut self, subscribe: Subscribe) -> Result<SubscribeReply, ConnectError> {
        self.send(SUBSCRIBE_ID, Operation::Subscribe(Box::new(subscribe)))
            .await?;
        loop {
            if let Message::Reply { id, result } = self.message().await?
                && id == SUBSCRIBE_ID
            {
                return Ok(result?.read()?);
            }
        }
    }

    /// The next events of the subscription. When nothing comes for so long, and nothing again when the
    /// server is asked for a sign of life, the connection is dead. Cancel-safe.
    async fn next_events(&mut self, after: Duration) -> Result<Events, ConnectError> {
        loop {
            match timeout_at(self.heard_at + after, self.message()).await {
                Ok(message) => match message? {
                    Message::Notice(Notice::Events(events))
                        if events.subscription == self.subscription =>
                    {
                        return Ok(*events);
                    }
                    Message::Notice(_) | Message::Reply { .. } | Message::Unknown { .. } => {}
                },
                Err(_elapsed) if self.is_probed => return Err(ConnectError::TimedOut { after }),
                Err(_elapsed) => {
                    // There is no such subscription: whatever is answered, the server is there.
                    let subscription = SubscriptionId(0);
                    let probe = Operation::Unsubscribe(Unsubscribe { subscription });
                    self.is_probed = true;
                    self.heard_at = Instant::now();
                    self.send(PROBE_ID, probe).await?;
                }
            }
        }
    }

    /// A request is small, and the server reads on: it is sent at once.
    async fn send(&mut self, id: u64, operation: Operation) -> Result<(), ConnectError> {
        let mut out = BytesMut::new();
        let request = Request { id, operation };
        if let Err(error) = request.encode(&mut out) {
            return Err(ConnectError::Io(Arc::new(std::io::Error::other(error))));
        }
        Ok(self.stream.write_all(&out).await?)
    }

    async fn message(&mut self) -> Result<Message, ConnectError> {
        loop {
            if let Some(map) = frame::decode(&mut self.inbox, FRAME_BYTES_MAX)? {
                self.heard_at = Instant::now();
                self.is_probed = false;
                return Ok(Message::decode(&map)?);
            }
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(ConnectError::Closed);
            }
        }
    }
}
