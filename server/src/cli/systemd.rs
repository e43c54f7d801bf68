//! Tells systemd how the server is, where systemd has started it: ready, reloading, stopping, and
//! alive as long as every shard can be reached. Without systemd it tells nobody.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::Control;

/// The server serves.
pub(super) fn ready() {
    tell(&NotifyState::Ready);
}

/// The configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    tell(&NotifyState::Reloading);
}

/// The server drains.
pub(super) fn stopping() {
    tell(&NotifyState::Stopping);
}

/// Says twice in each interval of the watchdog that the server is alive. Returns at once where
/// nobody watches.
pub(super) async fn keep_alive(control: Control) {
    let Some(every) = watchdog(|name| std::env::var(name).ok()) else {
        return;
    };
    loop {
        // A server whose shards cannot be looked at says nothing, and is restarted.
        control.reach_all();
        tell(&NotifyState::Watchdog);
        tokio::time::sleep(every).await;
    }
}

/// How often a sign of life is due: twice in the interval of `WATCHDOG_USEC`. A variable that was
/// meant for another process, by its `WATCHDOG_PID`, counts for nothing.
fn watchdog(variable: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    let own = std::process::id().to_string();
    if variable("WATCHDOG_PID").is_some_and(|pid| pid != own) {
        return None;
    }
    let interval: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    (interval > 1).then(|| Duration::from_micros(interval / 2))
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, std::slice::from_ref(state)) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_life_is_due_twice_in_the_interval_of_this_process() {
        let own = std::process::id().to_string();
        for (usec, pid, expected) in [
            (Some("30000000"), None, Some(15_000)),
            (Some("30000000"), Some(own.as_str()), Some(15_000)),
            (Some("30000000"), Some("1"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, None, None),
        ] {
            let variable = |name: &str| match name {
                "WATCHDOG_USEC" => usec.map(str::to_owned),
                _ => pid.map(str::to_owned),
            };
            let expected = expected.map(Duration::from_millis);
            assert_eq!(watchdog(variable), expected, "{usec:?} {pid:?}");
        }
    }
}
