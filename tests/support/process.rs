//! A server as a process of its own: started, killed, terminated, and started again over what it
//! left. Its log is kept and shown when the test fails.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    /// Where it listens.
    pub address: SocketAddr,
    /// What its ready file says.
    pub ready: Value,
    child: Child,
    lines: Receiver<String>,
    log: String,
}

/// A server that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Everything it wrote to stderr.
    pub stderr: String,
}

impl Process {
    /// Starts `executable serve` over `data` on a free port and waits until it listens.
    ///
    /// # Errors
    /// How it ended, when it did not start.
    pub fn start(executable: &str, data: &Path, args: &[&str]) -> Result<Self, Ended> {
        Self::run(Self::command(executable, data, args), &ready_file(data))
    }

    /// The command that [`Process::start`] runs, to be changed.
    pub fn command(executable: &str, data: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(executable);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .arg("--data-dir")
            .arg(data)
            .arg("--ready-file")
            .arg(ready_file(data))
            .args(args);
        command
    }

    /// Runs a command of [`Process::command`] and waits until it listens.
    ///
    /// # Errors
    /// How it ended, when it did not start.
    pub fn run(mut command: Command, ready_file: &Path) -> Result<Self, Ended> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the executable is there");
        let lines = read_lines(child.stderr.take().expect("a pipe"));
        let mut process = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            ready: Value::Null,
            child,
            lines,
            log: String::new(),
        };
        loop {
            match process.line() {
                // The ready file is written before this line.
                Some(line) if line.contains("\"message\":\"started\"") => break,
                Some(_) => {}
                None => return Err(process.wait()),
            }
        }
        let ready = std::fs::read(ready_file).expect("a ready file");
        process.ready = serde_json::from_slice(&ready).expect("JSON");
        let listen = process.ready["listen"].as_str().expect("an address");
        process.address = listen.parse().expect("an address");
        Ok(process)
    }

    /// SIGKILL, at once.
    pub fn kill(mut self) -> Ended {
        self.child.kill().expect("a live process");
        self.wait()
    }

    /// SIGTERM, and the time it takes to end.
    pub fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let pid = Pid::from_raw(pid).expect("a pid");
        kill_process(pid, signal).expect("a live process");
    }

    /// Waits for a line of its log that holds this text.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.line().expect("the server ended before it said so");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until it has ended.
    pub fn wait(mut self) -> Ended {
        while self.line().is_some() {}
        let status = self.child.wait().expect("a child");
        let stderr = std::mem::take(&mut self.log);
        Ended { status, stderr }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its log; `None` when it has closed it, which is when it ends.
    fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.log.push_str(&line);
                self.log.push('\n');
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the server neither started nor ended"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.log.extend(self.lines.iter().map(|line| line + "\n"));
            eprintln!("---- the log of the server\n{}----", self.log);
        }
    }
}

/// Where the server of a data directory says that it is ready.
fn ready_file(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".ready.json");
    PathBuf::from(name)
}

/// A pipe must be read or the server stops; a thread does that until the pipe ends.
fn read_lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let read = move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().spawn(read).expect("a thread");
    lines
}
