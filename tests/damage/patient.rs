//! A data directory with something of everything that a store can hold, made by a real server and
//! closed.

use std::path::Path;

use serde_json::json;
use support::{Connection, Process, bin};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

/// Makes it.
pub(crate) fn make(data: &Path) {
    let server = Process::start(EXECUTABLE, data, &["--shards", "1"]).expect("started");
    let mut producer = Connection::hello(server.address, json!({ "producer": {} })).0;
    for seq in 1..=40_u64 {
        let jobs: Vec<_> = (0..40)
            .map(|at| {
                json!({ "queue": format!("q{}", seq % 3), "kind": "k", "priority": at % 10,
                        "payload": bin(format!("{seq}.{at}").as_bytes()) })
            })
            .collect();
        producer.ok("push", json!({ "jobs": jobs, "seq": seq }));
    }
    let mut plain = Connection::open(server.address);
    for at in 0..30_u64 {
        plain.push(json!({ "queue": "later", "kind": "k", "delay_ms": 3_600_000 + at }));
        let payload = bin(vec![7; 20_000]);
        plain.push(json!({ "queue": "large", "kind": "k", "payload": payload }));
        plain.push(json!({ "queue": "bad", "kind": "k", "max_attempts": 1 + at % 2 }));
    }
    // Of those that wait for one time some have left: for another, to a worker, or for good.
    let later = |at: usize| {
        let payload = bin(vec![9; 1 + at % 3 * 6_000]);
        json!({ "queue": "later", "kind": "k", "delay_ms": 7_200_000, "payload": payload })
    };
    let jobs: Vec<_> = (0..60).map(later).collect();
    let pushed = plain.ok("push", json!({ "jobs": jobs }))["results"].clone();
    let id = |at: usize| pushed[at]["id"].clone();
    plain.ok("job_cancel", json!({ "jobs": [id(0), id(11), id(40)] }));
    let to = json!({ "delay_ms": 9_000_000 });
    plain.ok("job_change", json!({ "jobs": [id(5), id(17)], "to": to }));
    plain.ok(
        "job_change",
        json!({ "jobs": [id(33)], "to": { "delay_ms": 0 } }),
    );
    let mut worker = Connection::worker(server.address);
    for queue in ["bad", "q0", "q1", "large"] {
        let fields = json!({ "queues": [queue], "max": 24 });
        let granted = worker.ok("fetch", fields)["jobs"].clone();
        let jobs = granted.as_array().expect("jobs");
        let lease = |job: &serde_json::Value| json!({ "job": job["id"], "lease": job["lease"] });
        let leases: Vec<_> = jobs.iter().map(lease).collect();
        match queue {
            "bad" => {
                let fail = |mut lease: serde_json::Value| {
                    lease["message"] = json!("it failed ".repeat(900));
                    lease
                };
                let fails: Vec<_> = leases.into_iter().map(fail).collect();
                worker.ok("fail", json!({ "leases": fails }));
            }
            "q0" => {
                let (released, acked) = leases.split_at(8);
                worker.ok("release", json!({ "leases": released }));
                worker.ok("ack", json!({ "leases": acked }));
            }
            // Some stay with their worker, whose session outlives the server.
            _ => drop(worker.ok("ack", json!({ "leases": leases[..12] }))),
        }
    }
    plain.ok("queue_pause", json!({ "queues": ["q2"] }));
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}
