//! A queue as a whole: it is made, bounded, paused for a while, and emptied.
//!
//! `cargo run --example queues -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use ganger_client::{
    Client, ClientOptions, Job,
    protocol::{
        DurationMs, QueueName,
        queue::{QueueSet, Setting},
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("ganger://localhost");
    let client = Client::connect(ClientOptions::from_url(url)?).await?;
    let removed = manage(&client).await?;
    println!("{removed} jobs removed");
    Ok(())
}

/// How many jobs the purge removed.
pub(crate) async fn manage(client: &Client) -> Result<u64, Box<dyn std::error::Error>> {
    let queue: QueueName = "imports".parse()?;
    client.create_queue(queue.clone()).await?;
    let set = QueueSet {
        jobs_max: Setting::To(3),
        timeout_ms: Setting::To(DurationMs::from_mins(10)),
        ..QueueSet::of(queue.clone())
    };
    client.set_queue(set).await?;
    for number in 1..=4 {
        let job = Job::new("import").queue("imports").json(&number)?;
        match client.push(job).await {
            Ok(id) => println!("pushed {id}"),
            Err(error) => println!("refused: {error}"),
        }
    }
    client
        .pause_for(vec![queue.clone()], DurationMs::from_mins(5))
        .await?;
    let shown = client.queue(queue.clone()).await?.queue;
    println!("paused until {:?}", shown.paused_until);
    let removed = client.purge(queue.clone()).await?;
    client.delete_queue(queue).await?;
    Ok(removed)
}
