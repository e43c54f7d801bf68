//! A connection that speaks the protocol's types, and says when it is gone.

use std::{collections::BTreeSet, io, net::SocketAddr};

use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    JobId, NamespaceName, VERSION, WireError,
    batch::BatchView,
    request::{
        BatchList, DeadList, Hello, Operation, ProducerHello, QueueList, Request, SessionHello,
    },
    response::{BatchesReply, Body, HelloReply, JobsReply, Message, QueueView, QueuesReply},
};
use serde::de::DeserializeOwned;
use support::Connection;

use crate::plan::QUEUES;

/// The connection has ended, or the server says that it is about to.
#[derive(Debug)]
pub(crate) struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    next_id: u64,
}

/// A reply and the id of its request.
pub(crate) type Reply = (u64, Result<Body, WireError>);

impl Link {
    /// Connects and says hello.
    pub(crate) fn open(
        address: SocketAddr,
        session: Option<SessionHello>,
        producer: Option<ProducerHello>,
    ) -> Result<(Self, Result<HelloReply, WireError>), Gone> {
        let mut link = Self {
            connection: Connection::try_connect(address)?,
            next_id: 1,
        };
        let id = link.send(Operation::Hello(Box::new(Hello {
            v: VERSION,
            client: "crash".to_owned(),
            features: Vec::new(),
            namespace: NamespaceName::default(),
            auth: None,
            session,
            producer,
        })))?;
        let (answered, result) = link.reply()?;
        assert_eq!(answered, id, "the first reply is that of hello");
        let reply = result.map(|body| body.read::<HelloReply>().expect("a reply to hello"));
        Ok((link, reply))
    }

    pub(crate) fn send(&mut self, operation: Operation) -> Result<u64, Gone> {
        let id = self.next_id;
        self.next_id += 1;
        let mut buffer = BytesMut::new();
        let request = Request { id, operation };
        request.encode(&mut buffer).expect("encoded");
        self.connection.try_send_bytes(&buffer)?;
        Ok(id)
    }

    /// The next reply; notices are passed over, since every lease that ends says so when it is
    /// answered.
    pub(crate) fn reply(&mut self) -> Result<Reply, Gone> {
        loop {
            let frame = self.connection.try_frame()?.ok_or(Gone)?;
            match Message::decode(&Bytes::from(frame)).expect("a message of a server") {
                Message::Reply { id, result } => return Ok((id, result)),
                Message::Notice(_) | Message::Unknown { .. } => {}
            }
        }
    }
}

/// A connection of somebody who looks on, to a server that does not end meanwhile.
pub(crate) struct Asker(Link);

impl Asker {
    pub(crate) fn to(address: SocketAddr) -> Self {
        let (link, hello) = Link::open(address, None, None).expect("a live server");
        hello.expect("accepted");
        Self(link)
    }

    pub(crate) fn ask<T: DeserializeOwned>(&mut self, operation: Operation) -> T {
        self.0.send(operation).expect("a live server");
        let (_, result) = self.0.reply().expect("a reply");
        result.expect("ok").read().expect("a reply to this request")
    }

    pub(crate) fn queues(&mut self) -> Vec<QueueView> {
        let list = Operation::QueueList(QueueList::default());
        self.ask::<QueuesReply>(list).queues
    }

    pub(crate) fn dead(&mut self) -> BTreeSet<JobId> {
        let page = |asker: &mut Self, queue: &str, cursor| {
            let list = Operation::DeadList(DeadList {
                queue: queue.parse().expect("a name"),
                newest_first: false,
                cursor,
                limit: 1_000,
            });
            let page: JobsReply = asker.ask(list);
            (page.jobs, page.cursor)
        };
        let jobs = QUEUES.map(|queue| self.pages(|asker, cursor| page(asker, queue, cursor)));
        jobs.iter().flatten().map(|job| job.id).collect()
    }

    pub(crate) fn batches(&mut self, settled: bool) -> Vec<BatchView> {
        self.pages(|asker, cursor| {
            let list = Operation::BatchList(BatchList {
                settled,
                cursor,
                limit: 1_000,
            });
            let page: BatchesReply = asker.ask(list);
            (page.batches, page.cursor)
        })
    }

    /// All rows of a list.
    fn pages<T>(
        &mut self,
        page: impl Fn(&mut Self, Option<String>) -> (Vec<T>, Option<String>),
    ) -> Vec<T> {
        let (mut rows, mut cursor) = page(self, None);
        while cursor.is_some() {
            let (more, next) = page(self, cursor);
            rows.extend(more);
            cursor = next;
        }
        rows
    }
}
