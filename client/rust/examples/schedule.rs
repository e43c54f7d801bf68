//! Pushes jobs for later: after a delay, and at a wall time. The server fires both to the
//! millisecond, by its own clock.
//!
//! `cargo run --example schedule -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::{Duration, UNIX_EPOCH};

use ganger_client::{Client, ClientOptions, Job};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("ganger://localhost");
    let client = Client::connect(ClientOptions::from_url(url)?).await?;

    let reminder = Job::new("remind")
        .json(&"stand up")?
        .delay(Duration::from_secs(25 * 60));
    let reminder = client.push(reminder).await?;

    // 2100-01-01T00:00:00Z
    let century = UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    let greeting = Job::new("greet")
        .json(&"happy new century")?
        .run_at(century);
    let greeting = client.push(greeting).await?;

    for id in [reminder, greeting] {
        let job = client.job(id).await?;
        println!("{} is {} until {:?}", job.kind, job.state, job.run_at);
    }
    Ok(())
}
