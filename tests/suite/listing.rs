//! Lists of jobs of a real server: every state in its order, filters, cursors, and what is refused.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::lease;

fn ids(page: &Value) -> Vec<String> {
    let jobs = page["jobs"].as_array().expect("jobs");
    let ids = jobs.iter().map(|job| job["id"].as_str().expect("an id"));
    ids.map(str::to_owned).collect()
}

/// All jobs of a list, page by page.
fn all(connection: &mut Connection, filter: &Value, newest_first: bool, limit: u32) -> Vec<String> {
    let mut request = json!({ "filter": filter, "newest_first": newest_first, "limit": limit });
    let mut all = Vec::new();
    loop {
        let page = connection.ok("job_list", request.clone());
        assert!(ids(&page).len() <= limit as usize);
        all.extend(ids(&page));
        if page["is_complete"] == true {
            assert_eq!(page.get("cursor"), None);
            return all;
        }
        request["cursor"] = page["cursor"].clone();
    }
}

/// The same list by pages of many and of few, from both ends.
#[track_caller]
fn check_order(connection: &mut Connection, filter: &Value, expected: &[String]) {
    let reversed: Vec<String> = expected.iter().rev().cloned().collect();
    for limit in [1, 2, 1000] {
        assert_eq!(all(connection, filter, false, limit), expected, "{filter}");
        assert_eq!(all(connection, filter, true, limit), reversed, "{filter}");
    }
}

#[test]
fn every_state_is_listed_in_its_order_from_both_ends() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut push = |job: Value| worker.push(job);
    let later = push(json!({ "kind": "k", "queue": "q", "delay_ms": 90_000_000 }));
    let sooner = push(json!({ "kind": "k", "queue": "q", "delay_ms": 80_000_000 }));
    push(json!({ "kind": "k", "queue": "other", "delay_ms": 70_000_000 }));
    let first = push(json!({ "kind": "k", "queue": "q" }));
    let second = push(json!({ "kind": "k", "queue": "q" }));
    let urgent = push(json!({ "kind": "k", "queue": "q", "priority": 9 }));
    push(json!({ "kind": "k", "queue": "other" }));
    let held = [
        push(json!({ "kind": "k", "queue": "l", "timeout_ms": 50_000 })),
        push(json!({ "kind": "k", "queue": "l", "timeout_ms": 40_000 })),
    ];
    let dead: Vec<String> = (0..3)
        .map(|_| push(json!({ "kind": "k", "queue": "d" })))
        .collect();
    for _ in 0..2 {
        worker.wait("l");
    }
    for _ in 0..3 {
        let job = worker.wait("d");
        let mut fail = lease(&job);
        fail["dead"] = json!(true);
        worker.ok("fail", json!({ "leases": [fail] }));
        // Jobs that die within one millisecond stand in the order of their ids.
    }
    let list = |queue: &str, state: &str| json!({ "queue": queue, "states": [state] });
    let at = 4_000_000_000_000_u64;
    let jobs = vec![json!({ "kind": "k", "queue": "s", "run_at": at }); 30];
    let pushed = worker.ok("push", json!({ "jobs": jobs }))["results"].clone();
    let together = pushed.as_array().expect("results").iter();
    let mut together: Vec<String> = together
        .map(|result| result["id"].as_str().expect("an id").to_owned())
        .collect();
    check_order(&mut worker, &list("s", "scheduled"), &together);
    let left = [together.remove(20), together.remove(0)];
    worker.ok("job_cancel", json!({ "jobs": [left[0]] }));
    let to = json!({ "run_at": at + 1 });
    worker.ok("job_change", json!({ "jobs": [left[1]], "to": to }));
    together.push(left[1].clone());
    check_order(&mut worker, &list("s", "scheduled"), &together);
    worker.ok("job_cancel", json!({ "jobs": together }));
    check_order(&mut worker, &list("s", "scheduled"), &[]);
    check_order(
        &mut worker,
        &list("q", "scheduled"),
        &[sooner.clone(), later.clone()],
    );
    check_order(
        &mut worker,
        &list("q", "ready"),
        &[urgent.clone(), first.clone(), second.clone()],
    );
    let [longer, shorter] = held;
    check_order(&mut worker, &list("l", "leased"), &[shorter, longer]);
    check_order(&mut worker, &list("d", "dead"), &dead);
    check_order(&mut worker, &list("q", "blocked"), &[]);
    check_order(&mut worker, &list("q", "done"), &[]);
    // Over all states: as the states are listed, and each in its order.
    let of_queue = json!({ "queue": "q" });
    assert_eq!(
        all(&mut worker, &of_queue, false, 2),
        [sooner, later, urgent, first, second]
    );
    assert_eq!(all(&mut worker, &json!({}), false, 3).len(), 12);
    assert_eq!(
        all(&mut worker, &json!({ "queue": "no*" }), false, 3).len(),
        0
    );
}

#[test]
fn a_filter_means_the_jobs_for_which_all_of_it_holds() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let batch = worker.ok("batch_open", json!({}))["id"].clone();
    let tagged = worker.push(json!({ "kind": "a", "queue": "q", "tags": ["vip", "eu"] }));
    let other = worker.push(json!({ "kind": "b", "queue": "q", "priority": 7 }));
    let member = worker.push(json!({ "kind": "a", "queue": "q.eu", "batch": batch }));
    let scheduled =
        worker.push(json!({ "kind": "b", "queue": "q", "run_at": 4_000_000_000_000_u64 }));
    for (filter, expected) in [
        (json!({ "kind": "a" }), vec![&tagged, &member]),
        (
            json!({ "kind": "b", "queue": "q" }),
            vec![&scheduled, &other],
        ),
        (json!({ "tag": "eu" }), vec![&tagged]),
        (json!({ "tag": "eu", "kind": "b" }), vec![]),
        (json!({ "batch": batch }), vec![&member]),
        (json!({ "priority": 7 }), vec![&other]),
        (json!({ "queue": "q.*" }), vec![&member]),
        (
            json!({ "queue": "q*", "kind": "a" }),
            vec![&tagged, &member],
        ),
        (json!({ "key": "nobody" }), vec![]),
        (json!({ "since": 4_000_000_000_000_u64 }), vec![&scheduled]),
        (json!({ "since": 4_000_000_000_001_u64 }), vec![]),
        (
            json!({ "before": 4_000_000_000_000_u64 }),
            vec![&other, &tagged, &member],
        ),
        (
            json!({ "before": 4_000_000_000_001_u64, "states": ["scheduled"] }),
            vec![&scheduled],
        ),
    ] {
        let found = all(&mut worker, &filter, false, 1000);
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter}");
    }
}

#[test]
fn jobs_are_found_by_their_last_error_which_is_shown() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    for (kind, message) in [
        ("smtp", "no route to host"),
        ("smtp", "refused"),
        ("dns", "no route"),
    ] {
        worker.push(json!({ "kind": "k", "queue": "q" }));
        let job = worker.wait("q");
        let mut fail = lease(&job);
        fail["kind"] = json!(kind);
        fail["message"] = json!(message);
        fail["backtrace"] = json!("in a.rs");
        fail["dead"] = json!(true);
        worker.ok("fail", json!({ "leases": [fail] }));
    }
    let found = |worker: &mut Connection, filter: Value| {
        let page = worker.ok("job_list", json!({ "filter": filter }));
        page["jobs"].as_array().expect("jobs").clone()
    };
    let by_kind = found(&mut worker, json!({ "error_kind": "smtp" }));
    assert_eq!(by_kind.len(), 2);
    assert_eq!(by_kind[0]["errors"][0]["message"], "no route to host");
    assert_eq!(by_kind[0]["errors"][0].get("backtrace"), None);
    assert_eq!(
        found(&mut worker, json!({ "error_text": "route" })).len(),
        2
    );
    let both = json!({ "error_text": "route", "error_kind": "dns" });
    assert_eq!(found(&mut worker, both).len(), 1);
    let unasked = found(&mut worker, json!({}));
    assert_eq!(unasked.len(), 3);
    assert_eq!(unasked[0].get("errors"), None);
}

#[test]
fn a_scan_that_finds_little_ends_with_its_budget_and_goes_on_by_its_cursor() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    const FIRST: usize = 15_000;
    let many = vec![json!({ "kind": "many", "queue": "q" }); 1_000];
    for _ in 0..FIRST / 1_000 {
        connection.ok("push", json!({ "jobs": many }));
    }
    let wanted = connection.push(json!({ "kind": "wanted", "queue": "q" }));
    for _ in 0..FIRST / 1_000 {
        connection.ok("push", json!({ "jobs": many }));
    }
    let mut request = json!({ "filter": { "queue": "q", "kind": "wanted" } });
    let (mut scanned, mut pages, mut found) = (0, 0, Vec::new());
    loop {
        let page = connection.ok("job_list", request.clone());
        let rows = page["scanned"].as_u64().expect("rows");
        assert!(rows < 21_000, "a page is bounded: {rows}");
        scanned += rows;
        pages += 1;
        found.extend(ids(&page));
        if page["is_complete"] == true {
            break;
        }
        request["cursor"] = page["cursor"].clone();
    }
    assert!(pages > 1);
    assert_eq!(scanned as usize, 2 * FIRST + 1);
    assert_eq!(found, [wanted]);
}

#[test]
fn what_happens_between_two_pages_shows_no_job_twice_and_hides_none_that_stays() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let jobs = vec![json!({ "kind": "k", "queue": "q" }); 100];
    let pushed = worker.ok("push", json!({ "jobs": jobs }));
    let pushed: Vec<Value> = pushed["results"].as_array().expect("results").clone();
    let mut request = json!({ "filter": { "queue": "q", "states": ["ready"] }, "limit": 10 });
    let mut seen = Vec::new();
    for round in 0.. {
        let page = worker.ok("job_list", request.clone());
        seen.extend(ids(&page));
        if page["is_complete"] == true {
            break;
        }
        request["cursor"] = page["cursor"].clone();
        if round == 3 {
            let gone: Vec<&Value> = pushed.iter().map(|job| &job["id"]).take(60).collect();
            worker.ok("job_cancel", json!({ "jobs": gone }));
            worker.push(json!({ "kind": "k", "queue": "q" }));
        }
    }
    let distinct: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "none twice");
    let staying = pushed
        .iter()
        .skip(60)
        .map(|job| job["id"].as_str().expect("an id").to_owned());
    for job in staying {
        assert!(distinct.contains(&job), "{job} is hidden");
    }
    assert_eq!(seen.len(), 40 + 41);
}

#[test]
fn a_cursor_is_refused_by_every_list_but_its_own() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    for queue in ["q", "q", "other", "other"] {
        worker.push(json!({ "kind": "k", "queue": queue }));
    }
    let own = json!({ "filter": { "queue": "q" }, "limit": 1 });
    let page = worker.ok("job_list", own.clone());
    let cursor = page["cursor"].as_str().expect("a cursor").to_owned();
    let with = |request: Value, cursor: &str| {
        let mut request = request;
        request["cursor"] = json!(cursor);
        request
    };
    worker.ok("job_list", with(own.clone(), &cursor));
    // The number of jobs of a page is no part of the list.
    worker.ok(
        "job_list",
        with(json!({ "filter": { "queue": "q" }, "limit": 9 }), &cursor),
    );
    let mut cut = cursor.clone();
    cut.truncate(cursor.len() - 4);
    for request in [
        with(json!({ "filter": { "queue": "other" } }), &cursor),
        with(json!({ "filter": { "queue": "q", "kind": "k" } }), &cursor),
        with(
            json!({ "filter": { "queue": "q" }, "newest_first": true }),
            &cursor,
        ),
        with(own.clone(), &cut),
        with(own.clone(), "no base64!"),
        with(own.clone(), ""),
    ] {
        let error = worker.err("job_list", request.clone());
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!("bad_request"), &json!("cursor")),
            "{request}"
        );
    }
    let (mut elsewhere, _) = Connection::hello(server.address, json!({ "namespace": "n" }));
    let error = elsewhere.err("job_list", with(own, &cursor));
    assert_eq!(error["field"], "cursor");

    // A place among leases is of one life of the server.
    for _ in 0..2 {
        worker.wait("q");
    }
    let leased = json!({ "filter": { "states": ["leased"] }, "limit": 1 });
    let page = worker.ok("job_list", leased.clone());
    let cursor = page["cursor"].as_str().expect("a cursor").to_owned();
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let error = worker.err("job_list", with(leased, &cursor));
    assert_eq!(error["field"], "cursor");
    assert!(
        error["message"].as_str().expect("text").contains("started"),
        "{error}"
    );
}

#[test]
fn what_a_list_cannot_mean_is_refused_with_its_field() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    for (request, field) in [
        (
            json!({ "filter": { "states": ["failed"] } }),
            "filter.states[0]",
        ),
        (
            json!({ "filter": { "states": ["ready", "ready"] } }),
            "filter.states[1]",
        ),
        (json!({ "filter": { "queue": "a b" } }), "filter.queue"),
        (json!({ "filter": { "priority": 10 } }), "filter.priority"),
        (
            json!({ "filter": { "error_text": "" } }),
            "filter.error_text",
        ),
        (
            json!({ "filter": { "since": 5, "before": 5 } }),
            "filter.before",
        ),
        (json!({ "limit": 0 }), "limit"),
        (json!({ "limit": 1001 }), "limit"),
    ] {
        let error = connection.err("job_list", request.clone());
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!("bad_request"), &json!(field)),
            "{request}"
        );
    }
    connection.ok("job_list", json!({ "limit": 1000 }));
}
