//! The servers under load: started on loopback with a directory of their own, in their durable
//! setting, restarted and stopped. Which one is measured with what is `plan.rs`'s.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Room for every connection of a workload.
const CONNECTIONS_MAX: &str = "20000";
const START_SECONDS_MAX: u64 = 120;
const STOP_SECONDS_MAX: u64 = 60;

#[derive(Debug, Clone)]
pub(crate) enum Program {
    Redis,
    Beanstalkd,
    Ganger(PathBuf),
}

impl Program {
    pub(crate) fn is_installed(&self) -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|dir| dir.join(self.executable()).is_file())
    }

    /// A name to be looked up, or an absolute path, which `join` leaves alone.
    fn executable(&self) -> &Path {
        match self {
            Self::Redis => Path::new("redis-server"),
            Self::Beanstalkd => Path::new("beanstalkd"),
            Self::Ganger(path) => path,
        }
    }
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    program: Program,
    dir: PathBuf,
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
}

impl Server {
    pub(crate) async fn start(program: Program, dir: &Path) -> Result<Self> {
        let (child, pid, port) = spawn(&program, dir)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self {
            program,
            dir: dir.to_path_buf(),
            child,
            address,
            pid,
        };
        server.listening().await?;
        Ok(server)
    }

    /// Starts it again over what it left behind, without waiting for it to answer.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let port;
        (self.child, self.pid, port) = spawn(&self.program, &self.dir)?;
        self.address.set_port(port);
        Ok(())
    }

    /// Waits until it accepts connections, and learns its port where it chose one itself.
    pub(crate) async fn listening(&mut self) -> Result<()> {
        let wait = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    bail!("the server ended with {status}: {}", log_tail(&self.dir));
                }
                if let Program::Ganger(_) = self.program
                    && let Some(address) = ready_address(&self.dir)
                {
                    self.address = address;
                }
                if self.address.port() != 0 && TcpStream::connect(self.address).await.is_ok() {
                    return Ok(());
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(START_SECONDS_MAX), wait)
            .await
            .context("no listener")?
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// SIGKILL, at once.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// SIGTERM, and the time it is given to finish.
    pub(crate) async fn terminate(&mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?).context("pid 0")?;
        kill_process(pid, Signal::TERM)?;
        let ended = timeout(Duration::from_secs(STOP_SECONDS_MAX), self.child.wait()).await;
        ended.context("the server did not end after SIGTERM")??;
        Ok(())
    }
}

fn spawn(program: &Program, dir: &Path) -> Result<(Child, u32, u16)> {
    let data = dir.join("data");
    fs::create_dir_all(&data)?;
    let port = match program {
        Program::Ganger(_) => 0,
        Program::Redis | Program::Beanstalkd => free_port()?,
    };
    let mut command = Command::new(program.executable());
    match program {
        Program::Redis => {
            command
                .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
                .arg(&data);
            command.args([
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--save",
                "",
                "--maxclients",
                CONNECTIONS_MAX,
            ]);
        }
        Program::Beanstalkd => {
            command
                .args(["-l", "127.0.0.1", "-p", &port.to_string(), "-f0", "-b"])
                .arg(&data);
        }
        Program::Ganger(_) => {
            let ready = dir.join("ready.json");
            let _ = fs::remove_file(&ready);
            command
                .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
                .arg(&data);
            command.arg("--ready-file").arg(&ready);
            command.env("GANGER_LIMITS__CONNECTIONS_MAX", CONNECTIONS_MAX);
        }
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let pid = child.id().context("the server ended at once")?;
    Ok((child, pid, port))
}

/// A port that nobody listened on a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// `listen` of the file that ganger writes once it accepts connections.
fn ready_address(dir: &Path) -> Option<SocketAddr> {
    let text = fs::read(dir.join("ready.json")).ok()?;
    let ready: serde_json::Value = serde_json::from_slice(&text).ok()?;
    ready.get("listen")?.as_str()?.parse().ok()
}

fn log_tail(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
