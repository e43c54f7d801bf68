//! Unique keys at work. Debounce: of many pushes in a row the last one runs, once, when it has been
//! quiet for a while. Throttle: however often it is pushed, it runs once in a while.
//!
//! `cargo run --example unique -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use ganger_client::{
    Client, ClientOptions, Error, Job,
    protocol::{job::OnConflict, request::Push, response::PushResult},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("ganger://localhost");
    let client = Client::connect(ClientOptions::from_url(url)?).await?;
    debounce(&client).await?;
    throttle(&client).await
}

/// Each edit replaces the payload of the job that waits, and lets it wait anew.
pub(crate) async fn debounce(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
    for revision in 1..=3 {
        let index = Job::new("index")
            .queue("search")
            .json(&serde_json::json!({ "document": 42, "revision": revision }))?
            .delay(Duration::from_secs(5))
            .unique("index:42")
            .on_conflict(OnConflict::Replace);
        let result = push(client, index).await?;
        println!("revision {revision}: replaced is {}", result.replaced);
    }
    Ok(())
}

/// The key is held for a minute, whatever becomes of the job; what comes in that time makes none.
pub(crate) async fn throttle(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
    for attempt in 1..=3 {
        let alert = Job::new("alert")
            .queue("mail")
            .json(&"the disk is full")?
            .unique("alert:disk")
            .unique_ttl(Duration::from_secs(60));
        let result = push(client, alert).await?;
        println!("alert {attempt}: existing is {}", result.existing);
    }
    Ok(())
}

async fn push(client: &Client, job: Job) -> Result<PushResult, Error> {
    let mut results = client.push_with(Push::of(vec![job.build()?])).await?;
    match results.pop() {
        Some(PushResult {
            err: Some(error), ..
        }) => Err(Error::Refused(error)),
        Some(result) => Ok(result),
        None => Err(Error::Closed),
    }
}
