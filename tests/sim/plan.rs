//! What a seed decides once: the size of the world, its limits, and how much of what happens.

use fastrand::Rng;
use ganger_protocol::{NamespaceName, QueueName};

/// A queue of the world.
#[derive(Debug)]
pub struct QueuePlan {
    pub namespace: NamespaceName,
    pub name: QueueName,
}

/// The parameters of a run.
#[derive(Debug)]
pub struct Plan {
    pub queues: Vec<QueuePlan>,
    pub producers: usize,
    pub workers: usize,
    /// Priorities in use.
    pub priorities: Vec<u8>,
    /// Jobs that are not over, above which producers hold back.
    pub live_max: usize,
    /// Of 100 pushed jobs, so many are delayed.
    pub delayed_percent: u32,
    /// Of 100 pushed jobs, so many may expire.
    pub expiring_percent: u32,
    /// Of 100 pushed jobs, so many have one of few unique keys.
    pub unique_percent: u32,
    pub heads_max: usize,
    pub settled_max: usize,
    pub poison_losses: u32,
    pub overlay_bytes_max: usize,
    pub checkpoint_bytes: u64,
    pub slice_operations_max: usize,
    pub has_jumps: bool,
    pub producers_weight: u32,
    pub workers_weight: u32,
    pub admin_weight: u32,
    pub sync_weight: u32,
    pub tick_weight: u32,
    pub checkpoint_weight: u32,
    pub clock_weight: u32,
    pub trouble_weight: u32,
    pub cron_weight: u32,
    pub batch_weight: u32,
    pub outcome_weight: u32,
    pub limit_weight: u32,
}

const NAMES: [&str; 4] = ["mail", "mail.eu", "sms", "default"];

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
        let namespaces = if rng.u32(..4) == 0 { 2 } else { 1 };
        let mut queues = Vec::new();
        for namespace in ["default", "other"].iter().take(namespaces) {
            for name in NAMES
                .iter()
                .take(rng.usize(1..=if namespaces == 1 { 3 } else { 2 }))
            {
                queues.push(QueuePlan {
                    namespace: namespace.parse().expect("a legal name"),
                    name: name.parse().expect("a legal name"),
                });
            }
        }
        let mut priorities = vec![5];
        for priority in [9, 0, 6] {
            if rng.bool() {
                priorities.push(priority);
            }
        }
        Self {
            queues,
            producers: rng.usize(1..=3),
            workers: rng.usize(1..=4),
            priorities,
            live_max: [8, 24, 40, 70][rng.usize(..4)],
            delayed_percent: [0, 10, 40][rng.usize(..3)],
            expiring_percent: [0, 10, 40][rng.usize(..3)],
            unique_percent: [0, 20, 60][rng.usize(..3)],
            heads_max: [1, 8, 20, 1000][rng.usize(..4)],
            settled_max: [1, 4, 64, 1024][rng.usize(..4)],
            poison_losses: [0, 2, 3, 5][rng.usize(..4)],
            overlay_bytes_max: [32 << 10, 128 << 10, 1 << 20][rng.usize(..3)],
            checkpoint_bytes: [2 << 10, 16 << 10][rng.usize(..2)],
            slice_operations_max: [2, 5, 20, 200][rng.usize(..4)],
            has_jumps: rng.u32(..3) == 0,
            producers_weight: rng.u32(10..40),
            workers_weight: rng.u32(20..70),
            admin_weight: rng.u32(0..6),
            sync_weight: rng.u32(5..50),
            tick_weight: rng.u32(5..25),
            checkpoint_weight: rng.u32(0..6),
            clock_weight: rng.u32(0..5),
            trouble_weight: [0, 1, 1, 3][rng.usize(..4)],
            cron_weight: [0, 4, 12][rng.usize(..3)],
            batch_weight: [0, 6, 20][rng.usize(..3)],
            outcome_weight: [0, 8, 25][rng.usize(..3)],
            limit_weight: [0, 10, 40][rng.usize(..3)],
        }
    }
}
