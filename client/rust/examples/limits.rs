//! Limits: tenants share a queue, none has more than two jobs running, and jobs of an account come one
//! at a time, in order.
//!
//! `cargo run --example limits -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use ganger_client::{
    Client, ClientOptions, Job,
    protocol::{
        DurationMs,
        limit::{LimitList, LimitSet, LimitTarget, Rate},
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("ganger://localhost");
    let client = Client::connect(ClientOptions::from_url(url)?).await?;
    println!("{} limits", limit(&client).await?);
    Ok(())
}

/// How many limits there are then.
pub(crate) async fn limit(client: &Client) -> Result<usize, Box<dyn std::error::Error>> {
    // Of each tenant, by its own.
    let tenants = LimitSet {
        max_running: Some(2),
        rate: Some(Rate {
            n: 100,
            per_ms: DurationMs::from_mins(1),
            burst: Some(10),
        }),
        ..LimitSet::of(LimitTarget::Key("tenant:*".parse()?))
    };
    client.set_limit(tenants).await?;
    // One that pays for more.
    let large = LimitSet {
        max_running: Some(50),
        weight: Some(5),
        ..LimitSet::of(LimitTarget::Key("tenant:42".parse()?))
    };
    client.set_limit(large).await?;
    let accounts = LimitSet {
        sequence: true,
        ..LimitSet::of(LimitTarget::Key("account:*".parse()?))
    };
    client.set_limit(accounts).await?;
    for number in 1..=3 {
        let job = Job::new("report")
            .queue("reports")
            .key("tenant:7")
            .json(&number)?;
        println!("pushed {}", client.push(job).await?);
    }
    let limit = LimitTarget::Key("tenant:42".parse()?);
    println!("{:?} running", client.limit(limit.clone()).await?.running);
    client.delete_limit(limit).await?;
    let list = LimitList {
        cursor: None,
        limit: 100,
    };
    Ok(client.limits(list).await?.limits.len())
}
