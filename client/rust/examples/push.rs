//! Pushes one job with a few options, then several at once.
//!
//! `cargo run --example push -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use ganger_client::{Client, ClientOptions, Error, Job};
use serde::Serialize;

#[derive(Serialize)]
struct Mail<'a> {
    to: &'a str,
    subject: &'a str,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("ganger://localhost");
    let client = Client::connect(ClientOptions::from_url(url)?).await?;

    let mail = Mail {
        to: "ann@example.org",
        subject: "Welcome",
    };
    let job = Job::new("mail").queue("mail").json(&mail)?.priority(7);
    match client.push(job).await {
        Ok(id) => println!("pushed {id}"),
        Err(Error::OutcomeUnknown(why)) => println!("perhaps pushed: {why}"),
        Err(error) => return Err(error.into()),
    }

    let mut jobs = Vec::new();
    for page in 1..=10_u32 {
        jobs.push(Job::new("render").queue("pages").payload(&page)?.build()?);
    }
    for result in client.push_many(jobs).await? {
        match result {
            Ok(id) => println!("pushed {id}"),
            Err(refusal) => println!("refused: {refusal}"),
        }
    }
    client.close().await;
    Ok(())
}
