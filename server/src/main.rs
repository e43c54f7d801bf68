//! One line.
use ganger_server::{Server, config::Config};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let get = |f: &str| args.iter().position(|a| a == f).map(|i| args[i + 1].clone());
    let mut config = Config::default();
    if let Some(d) = get("--data-dir") { config.data_dir = d.into(); }
    if let Some(d) = get("--listen") { config.listen = d.parse().unwrap(); }
    let _t = ganger_server::telemetry::Telemetry::start("info", ganger_server::telemetry::LogFormat::Auto).unwrap();
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let code = rt.block_on(async {
        let server = match Server::start(&config) { Ok(s) => s, Err(e) => { eprintln!("{e:?}"); return 74 } };
        if let Some(f) = get("--ready-file") {
            let t = format!("{f}.tmp");
            std::fs::write(&t, format!("{{\"pid\":{},\"listen\":\"{}\",\"recovery_ms\":{}}}", std::process::id(), server.listen(), server.recovered().recovery_ms)).unwrap();
            std::fs::rename(t, f).unwrap();
        }
        let stop = tokio_util::sync::CancellationToken::new();
        let s2 = stop.clone();
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let run = server.run_until_drained(stop);
        tokio::pin!(run);
        let r = tokio::select! { r = &mut run => r, _ = term.recv() => { s2.cancel(); run.await } };
        if let Err(e) = r { eprintln!("{e:?}"); return 74 } 0
    });
    std::process::exit(code)
}
