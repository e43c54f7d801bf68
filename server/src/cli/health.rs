//! `ganger health`: whether a server lives (it says `welcome`), or is ready (it takes `hello`).
//!
//! Neither needs a token: a server that refuses one works.

use std::time::Duration;

use ganger_client::{Client, ConnectError, Error as ClientError};
use ganger_protocol::{
    ErrorCode,
    codec::{CodecError, FrameCodec},
    response::{Message, Notice},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_util::{bytes::BytesMut, codec::Decoder as _};

use super::{
    connect::ConnectArgs,
    error::{CliError, Exit},
    output::{Format, pairs},
};
use crate::{clock::Stopwatch, config::units::Span};

/// While waiting, from one question to the next.
const ASK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct HealthArgs {
    /// Ask whether it takes requests, not only whether it lives
    #[arg(long)]
    ready: bool,
    /// How long to wait for an answer
    #[arg(long, default_value = "5s")]
    timeout: Span,
    /// Ask again and again until it is so, for at most this long
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    wait: Span,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: HealthArgs) -> Result<(), CliError> {
    let (watch, mut ticks) = (Stopwatch::start(), tokio::time::interval(ASK_EVERY));
    loop {
        ticks.tick().await;
        match ask(&args).await {
            Ok(()) => break,
            // Wrong usage stays wrong.
            Err(error) if error.exit == Exit::Usage => return Err(error),
            Err(error) if watch.elapsed() >= args.wait.duration() => return Err(error),
            Err(_not_yet) => {}
        }
    }
    let status = if args.ready { "ready" } else { "alive" };
    args.format
        .print(&serde_json::json!({ "status": status }), |_json| {
            pairs(&[("status", status.to_owned())])
        })
}

async fn ask(args: &HealthArgs) -> Result<(), CliError> {
    let timeout = args.timeout.duration();
    let question = async {
        let options = args.connect.options()?;
        if args.ready {
            ready(
                Client::connect(options.connect_timeout(timeout))
                    .await
                    .map(|_client| ()),
            )
        } else {
            alive(&options.address()).await
        }
    };
    tokio::time::timeout(timeout + Duration::from_millis(100), question)
        .await
        .unwrap_or_else(|_elapsed| Err(CliError::new(Exit::TimedOut, "no answer in time")))
}

/// What an attempt to say `hello` means: who refuses a token is ready for another one.
fn ready(connected: Result<(), ClientError>) -> Result<(), CliError> {
    match connected {
        Ok(()) => Ok(()),
        Err(ClientError::Unreachable {
            cause: ConnectError::TokenMissing,
            ..
        }) => Ok(()),
        Err(
            ClientError::Refused(error)
            | ClientError::Unreachable {
                cause: ConnectError::Refused(error),
                ..
            },
        ) if matches!(error.code, ErrorCode::Unauthorized | ErrorCode::Forbidden) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn alive(address: &str) -> Result<(), CliError> {
    let unreachable = |cause: &(dyn std::error::Error + 'static)| {
        let message = format!("cannot reach a server at {address}");
        CliError::new(Exit::Unreachable, message).because(cause)
    };
    let mut socket = TcpStream::connect(address)
        .await
        .map_err(|error| unreachable(&error))?;
    let (mut buffer, mut codec) = (BytesMut::new(), FrameCodec::default());
    loop {
        let frame = codec
            .decode(&mut buffer)
            .map_err(|error: CodecError| unreachable(&error))?;
        if let Some(frame) = frame {
            return match Message::decode(&frame).map_err(|error| unreachable(&error))? {
                Message::Notice(Notice::Welcome(_)) => Ok(()),
                Message::Reply {
                    result: Err(error), ..
                } => Err(error.into()),
                Message::Notice(_) | Message::Reply { .. } | Message::Unknown { .. } => {
                    Err(CliError::failed("something answers, but it is no ganger"))
                }
            };
        }
        let read = socket
            .read_buf(&mut buffer)
            .await
            .map_err(|error| unreachable(&error))?;
        if read == 0 {
            let message = format!("the server at {address} closed the connection");
            return Err(CliError::new(Exit::Unreachable, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ganger_protocol::WireError;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;
    use crate::{
        auth::Tokens,
        session::handshake,
        tasks::{OnPanic, Tasks},
    };

    /// What `health` says of a server that sends these bytes and hangs up.
    async fn answer(bytes: &[u8]) -> Result<(), Exit> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tasks, bytes) = (Tasks::new(), bytes.to_vec());
        tasks.spawn("server", OnPanic::Stop, async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(&bytes).await.unwrap();
        });
        alive(&address).await.map_err(|error| error.exit)
    }

    #[tokio::test]
    async fn a_server_that_says_welcome_lives() {
        let welcome = handshake::welcome(&[0; 32], &Tokens::new(&[]).unwrap(), &Default::default());
        let mut bytes = BytesMut::new();
        Notice::Welcome(welcome).encode(&mut bytes).unwrap();
        assert_eq!(answer(&bytes).await, Ok(()));
        assert_eq!(answer(&bytes[..9]).await, Err(Exit::Unreachable));
        assert_eq!(
            answer(b"HTTP/1.1 400\r\n\r\n").await,
            Err(Exit::Unreachable)
        );
        assert_eq!(
            answer(b"\0\0\0\x06\x82\xa2id\0\xa0").await,
            Err(Exit::Unreachable)
        );
    }

    #[tokio::test]
    async fn waiting_ends_when_the_server_is_there_or_when_the_time_is_over() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            health: HealthArgs,
        }
        // A port that was free a moment ago; whoever has it next starts late.
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let health = |wait: &str| {
            let line = format!("health --url ganger://{address} --wait {wait}");
            run(Line::try_parse_from(line.split(' ')).unwrap().health)
        };
        let error = health("150ms").await.unwrap_err();
        assert_eq!(error.exit, Exit::Unreachable);
        let welcome = handshake::welcome(&[0; 32], &Tokens::new(&[]).unwrap(), &Default::default());
        let mut bytes = BytesMut::new();
        Notice::Welcome(welcome).encode(&mut bytes).unwrap();
        let late = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(150));
            ticks.tick().await;
            ticks.tick().await;
            let listener = TcpListener::bind(address).await.unwrap();
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(&bytes).await.unwrap();
        };
        let (asked, ()) = tokio::join!(health("1m"), late);
        assert_eq!(asked, Ok(()));
    }

    #[test]
    fn a_server_that_wants_another_token_is_ready_and_one_that_drains_is_not() {
        let refused = |code| {
            let cause = ConnectError::Refused(WireError::new(code, "no"));
            let error = ClientError::Unreachable {
                address: String::new(),
                cause,
            };
            ready(Err(error)).map_err(|error| error.exit)
        };
        assert_eq!(refused(ErrorCode::Unauthorized), Ok(()));
        assert_eq!(refused(ErrorCode::Draining), Err(Exit::Failed));
    }
}
