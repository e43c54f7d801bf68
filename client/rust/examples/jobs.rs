//! Jobs are found, changed one by one, and cancelled all at once.
//!
//! `cargo run --example jobs -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use ganger_client::{
    Client, ClientOptions, Job,
    protocol::{
        change::{ChangeTo, JobChange},
        job::JobState,
        list::{JobFilter, JobList},
        task::{TaskAction, TaskStart, TaskState},
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("ganger://localhost");
    let client = Client::connect(ClientOptions::from_url(url)?).await?;
    println!("{} jobs cancelled", tidy_up(&client).await?);
    Ok(())
}

/// How many jobs were cancelled.
pub(crate) async fn tidy_up(client: &Client) -> Result<u64, Box<dyn std::error::Error>> {
    for number in 1..=20 {
        let job = Job::new("reminder").queue("reminders").json(&number)?;
        client
            .push(job.delay(Duration::from_secs(3600 * number)))
            .await?;
    }
    // The next three to run, three a page.
    let scheduled = JobFilter::of("reminders".parse()?).in_states([JobState::Scheduled]);
    let list = JobList {
        limit: 3,
        ..JobList::of(scheduled.clone())
    };
    let page = client.jobs(list).await?;
    let jobs = page.jobs.iter().map(|job| job.id).collect();
    let start = JobChange {
        jobs,
        to: ChangeTo::now(),
    };
    for result in client.change(start).await?.results {
        println!("now {:?}", result.state);
    }
    // The others, by a task of the server.
    let start = TaskStart::new(TaskAction::Cancel, scheduled);
    let mut task = client.start_task(start).await?;
    while task.state == TaskState::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
        task = client.task(task.id).await?;
    }
    Ok(task.changed)
}
