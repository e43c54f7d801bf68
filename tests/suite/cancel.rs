//! Cancelling jobs of a real server: what waits, what runs, over a restart, and who hears of it.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use ganger_client::{
    CancelReason, Client, ClientOptions, Context, Failure, Job, Worker,
    protocol::{job::JobState, request::JobCancel},
};
use serde_json::json;
use support::{Connection, InProcess};
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;

use crate::{counters, lease};

#[test]
fn a_waiting_job_is_over_and_a_running_worker_hears_of_it_at_once() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut other = Connection::open(server.address);
    let leased = other.push(json!({ "kind": "k" }));
    let job = worker.wait("default");
    let waiting = other.push(json!({ "kind": "k", "delay_ms": 60_000 }));

    let reply = other.ok("job_cancel", json!({ "jobs": [waiting, leased] }));
    assert_eq!(reply["results"][0], json!({ "state": "cancelled" }));
    assert_eq!(reply["results"][1]["state"], "leased");
    let notice = worker.notice();
    assert_eq!(
        (&notice["op"], &notice["leases"]),
        (&json!("cancel"), &json!([lease(&job)]))
    );
    assert_eq!(
        worker.ok("heartbeat", json!({}))["cancel"],
        json!([lease(&job)])
    );

    let failed = worker.ok("fail", json!({ "leases": [lease(&job)] }));
    assert_eq!(failed["results"], json!([{ "state": "cancelled" }]));
    assert_eq!(
        other.err("job_get", json!({ "job": leased }))["code"],
        "not_found"
    );
    assert_eq!(counters(&mut other, "default")["cancelled"], 2);
}

#[test]
fn a_worker_that_does_not_listen_loses_its_lease_after_the_grace_over_a_restart_too() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "k" }));
    worker.wait("default");
    let cancel = json!({ "jobs": [id], "grace_ms": 200 });
    let reply = worker.ok("job_cancel", cancel);
    let at = &reply["results"][0]["cancel_at"];
    assert_eq!(worker.ok("job_get", json!({ "job": id }))["cancel_at"], *at);

    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    // A job that becomes ready behind the grace is granted behind it.
    worker.push(json!({ "kind": "k", "queue": "later", "delay_ms": 250 }));
    worker.wait("later");
    assert_eq!(
        worker.err("job_get", json!({ "job": id }))["code"],
        "not_found"
    );
    assert_eq!(counters(&mut worker, "default")["cancelled"], 1);
}

#[test]
fn what_is_over_is_refused_by_itself_and_a_grace_that_is_too_long_as_a_whole() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.push(json!({ "kind": "k", "max_attempts": 1 }));
    let job = worker.wait("default");
    worker.ok("fail", json!({ "leases": [lease(&job)] }));
    let waiting = worker.push(json!({ "kind": "k" }));

    let reply = worker.ok("job_cancel", json!({ "jobs": [job["id"], waiting] }));
    let refused = &reply["results"][0]["err"];
    assert_eq!(
        (&refused["code"], &refused["state"]),
        (&json!("conflict"), &json!("dead"))
    );
    assert_eq!(reply["results"][1]["state"], "cancelled");

    let long = worker.err(
        "job_cancel",
        json!({ "jobs": [waiting], "grace_ms": 86_400_001 }),
    );
    assert_eq!(
        (&long["code"], &long["field"]),
        (&json!("bad_request"), &json!("grace_ms"))
    );
    let none = worker.err("job_cancel", json!({ "jobs": [] }));
    assert_eq!(none["field"], "jobs");
}

#[test]
fn a_handler_of_the_client_hears_of_it_by_its_token_and_not_by_a_heartbeat() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let heard_after = runtime.block_on(async {
        let options = ClientOptions::from_url(&url).expect("a url");
        let client = Client::connect(options.clone()).await.expect("connected");
        let (started, mut starts) = unbounded_channel();
        let (heard, mut hears) = unbounded_channel();
        let worker = Worker::builder(options)
            .queues(["default"])
            // A heartbeat comes after twenty seconds.
            .ttl(Duration::from_secs(60))
            .handler(move |_job, context: Context| {
                let (started, heard) = (started.clone(), heard.clone());
                async move {
                    started.send(()).expect("asked for");
                    let reason = context.cancelled().await;
                    heard.send(reason).expect("asked for");
                    Err::<(), _>(Failure::new("stopped", "as it was asked to"))
                }
            })
            .build()
            .expect("a worker");
        let stop = CancellationToken::new();
        let running = worker.run(stop.clone());
        let cancelling = async {
            let id = client.push(Job::new("long")).await.expect("pushed");
            starts.recv().await.expect("started");
            let cancel = JobCancel::new(vec![id]);
            let asked_at = tokio::time::Instant::now();
            client.cancel(cancel).await.expect("cancelled");
            let reason = hears.recv().await.expect("heard");
            let heard_after = asked_at.elapsed();
            assert_eq!(reason, CancelReason::Cancelled);
            let outcome = client.wait(id, Duration::from_secs(10)).await;
            // It has ended by now, or ends while somebody waits; nothing is kept of it.
            assert!(outcome.map_or(true, |it| it.state == JobState::Cancelled));
            stop.cancel();
            heard_after
        };
        let (ran, heard_after) = tokio::join!(running, cancelling);
        ran.expect("it ran");
        client.close().await;
        heard_after
    });
    println!("heard after {heard_after:?}");
    assert!(heard_after < Duration::from_secs(5), "{heard_after:?}");
    let mut client = Connection::open(server.address);
    assert_eq!(counters(&mut client, "default")["cancelled"], 1);
}

fn work(server: &InProcess, script: &str) -> Child {
    let url = format!("ganger://{}", server.address);
    Command::new(env!("CARGO_BIN_EXE_ganger-under-test"))
        .args(["work", "--url", &url, "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs")
}

#[test]
fn the_command_of_a_cancelled_job_is_asked_to_end() {
    let server = InProcess::start();
    let mut client = Connection::open(server.address);
    let id = client.push(json!({ "kind": "k", "retain_ms": 3_600_000 }));
    let mut worker = work(&server, "exec sleep 60");
    while client.ok("wait", json!({ "job": id, "wait_ms": 10 }))["state"] != "leased" {}
    client.ok("job_cancel", json!({ "jobs": [id] }));
    let outcome = client.ok("wait", json!({ "job": id, "wait_ms": 60_000 }));
    assert_eq!(outcome["state"], "cancelled");
    let view = client.ok("job_get", json!({ "job": id }));
    assert_eq!(view["errors"][0]["kind"], "signal_15");
    worker.kill().expect("killed");
    worker.wait().expect("over");
}
