//! A campaign of damages to a closed data directory: a bit flipped, a file cut off, a record taken
//! away. Each must be found by the doctor, or change nothing of what the directory holds; and what
//! the doctor repairs must be sound, with every job accounted for: saved, or told as lost.
//!
//! `GANGER_DAMAGES` says how many (default 100), `GANGER_DAMAGE_SEED` repeats them, `GANGER_DAMAGE`
//! repeats the one of that number.

mod patient;

use std::{
    collections::BTreeMap,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use bytes::Bytes;
use fastrand::Rng;
use ganger_server::{
    clock::Stopwatch,
    store::{
        keys::Key,
        sled::SledTable,
        table::{Order, Span, Table},
    },
    upkeep::{Diagnosis, UpkeepError, examine},
};

/// What is done to a directory.
#[derive(Debug, Clone)]
enum Damage {
    Flip { file: PathBuf, bit: u64 },
    CutOff { file: PathBuf, bytes: u64 },
    Remove { key: Key },
}

/// What came of a damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The directory cannot be opened, and says why.
    Refused,
    /// The doctor names it.
    Found,
    /// Everything is there.
    Harmless,
}

fn main() -> ExitCode {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let count: u64 = number("GANGER_DAMAGES").unwrap_or(100);
    let seed = number("GANGER_DAMAGE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let only: Option<u64> = number("GANGER_DAMAGE");
    println!("GANGER_DAMAGE_SEED={seed} GANGER_DAMAGES={count}");
    let watch = Stopwatch::start();
    let place = tempfile::tempdir().expect("a directory");
    let whole = place.path().join("whole");
    patient::make(&whole);
    let sound = examine(&whole, false, |_| {}).expect("it can be opened");
    assert_eq!(
        sound.ailments,
        [],
        "the patient is ill before it is damaged"
    );
    let shard = whole.join("shard-0");
    let keys = keys(&shard);
    let files = files(&whole);
    println!(
        "{} records, {} jobs, {} files",
        sound.records,
        sound.jobs,
        files.len()
    );
    let mut outcomes: BTreeMap<(&'static str, Outcome), u64> = BTreeMap::new();
    let mut violations = 0;
    for number in only.map_or(0..count, |only| only..only + 1) {
        let mut random = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let damage = choose(&mut random, &whole, &files, &keys);
        let copy = place.path().join("copy");
        copy_dir(&whole, &copy);
        inflict(&damage, &copy);
        // A panic is what must never happen, so it is not let through.
        let checked = catch_unwind(AssertUnwindSafe(|| check(&copy, &sound)));
        match checked {
            Ok(Ok(outcome)) => *outcomes.entry((damage.kind(), outcome)).or_default() += 1,
            Ok(Err(what)) => {
                violations += 1;
                println!("violation: GANGER_DAMAGE={number} {damage:?}: {what}");
            }
            Err(_panic) => {
                violations += 1;
                println!("violation: GANGER_DAMAGE={number} {damage:?}: a panic");
            }
        }
        fs::remove_dir_all(&copy).expect("removed");
    }
    for ((kind, outcome), count) in &outcomes {
        println!("{kind}: {outcome:?} {count}");
    }
    println!(
        "violations {violations} seconds {}",
        watch.elapsed().as_secs()
    );
    match violations {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

impl Damage {
    fn kind(&self) -> &'static str {
        match self {
            Self::Flip { .. } => "flip",
            Self::CutOff { .. } => "cut off",
            Self::Remove { .. } => "remove",
        }
    }
}

/// What the doctor says of a damaged directory, and of the same one after its repair.
fn check(data: &Path, sound: &Diagnosis) -> Result<Outcome, String> {
    let diagnosis = match examine(data, true, |_| {}) {
        Err(UpkeepError::Store { .. } | UpkeepError::NoShards { .. }) => {
            return Ok(Outcome::Refused);
        }
        Err(error) => return Err(format!("{error:?}")),
        Ok(diagnosis) => diagnosis,
    };
    let (outcome, is_whole) = match diagnosis.ailments_count {
        0 if diagnosis.digest == sound.digest => (Outcome::Harmless, true),
        0 => {
            return Err(format!(
                "{} jobs of {}, and the doctor says nothing",
                diagnosis.jobs, sound.jobs
            ));
        }
        _ => (Outcome::Found, false),
    };
    let repaired = examine(data, false, |_| {}).map_err(|error| format!("repaired: {error:?}"))?;
    if let Some(ailment) = repaired.ailments.first() {
        return Err(format!("repaired, and still: {ailment:?}"));
    }
    if is_whole && repaired.digest != sound.digest {
        return Err("it changes by being looked at".to_owned());
    }
    Ok(outcome)
}

fn choose(random: &mut Rng, whole: &Path, files: &[(PathBuf, u64)], keys: &[Key]) -> Damage {
    let (file, length) = &files[random.usize(..files.len())];
    let file = file.strip_prefix(whole).expect("a file of it").to_owned();
    match random.u32(..10) {
        0..6 => Damage::Flip {
            bit: random.u64(..length * 8),
            file,
        },
        6 | 7 => Damage::CutOff {
            bytes: random.u64(..*length),
            file,
        },
        _ => Damage::Remove {
            key: keys[random.usize(..keys.len())],
        },
    }
}

fn inflict(damage: &Damage, data: &Path) {
    match damage {
        Damage::Flip { file, bit } => {
            let path = data.join(file);
            let mut bytes = fs::read(&path).expect("read");
            let at = usize::try_from(bit / 8).expect("an offset");
            bytes[at] ^= 1 << (bit % 8);
            fs::write(&path, bytes).expect("written");
        }
        Damage::CutOff { file, bytes } => {
            let file = fs::OpenOptions::new().write(true).open(data.join(file));
            file.and_then(|file| file.set_len(*bytes)).expect("cut off");
        }
        Damage::Remove { key } => {
            let table = table(&data.join("shard-0"));
            table.apply(&[(*key, None::<Bytes>)]).expect("removed");
            table.flush().expect("flushed");
        }
    }
}

fn table(shard: &Path) -> SledTable {
    SledTable::open(&shard.join("data-000001/table"), 8 << 20).expect("a table")
}

/// Every key of a closed shard.
fn keys(shard: &Path) -> Vec<Key> {
    let everything = Span {
        from: Key::lowest(),
        to: Key::end(),
        order: Order::Ascending,
    };
    let rows = table(shard).scan(&everything, usize::MAX).expect("rows");
    rows.into_iter().map(|(key, _)| key).collect()
}

/// The files that hold something, with their lengths.
fn files(place: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(place).expect("listed") {
        let path = entry.expect("an entry").path();
        let length = fs::metadata(&path).expect("a file").len();
        let name = path.file_name().expect("a name").to_string_lossy();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if length > 0 && name != "LOCK" && !name.starts_with("spare-") {
            files.push((path, length));
        }
    }
    files.sort();
    files
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy_dir(&path, &target),
            false => drop(fs::copy(&path, &target).expect("copied")),
        }
    }
}
