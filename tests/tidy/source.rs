//! The repository as text: its files, and which of the Rust ones are published. What stands in a
//! Rust file is for `code`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::code::Code;

/// The files that git would take.
pub(crate) struct Repository {
    /// Text files at any depth, in order of their paths.
    pub(crate) files: Vec<File>,
    /// Names at the root; folders have a slash at the end.
    pub(crate) root: Vec<String>,
}

impl Repository {
    pub(crate) fn read() -> Self {
        let root = root();
        let ignored = Ignored::read(&root);
        let mut files = Vec::new();
        walk(&root, Path::new(""), &ignored, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut names: Vec<String> = entries(&root, Path::new(""), &ignored)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        names.sort();
        Self { files, root: names }
    }
}

/// The folder that holds the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn walk(root: &Path, folder: &Path, ignored: &Ignored, files: &mut Vec<File>) {
    for (name, is_folder) in entries(root, folder, ignored) {
        let path = folder.join(name.trim_end_matches('/'));
        if is_folder {
            walk(root, &path, ignored, files);
        } else if let Ok(text) = fs::read_to_string(root.join(&path)) {
            // What is not UTF-8 is not source.
            files.push(File::new(&path.to_string_lossy(), &text));
        }
    }
}

fn entries(root: &Path, folder: &Path, ignored: &Ignored) -> Vec<(String, bool)> {
    let listing = fs::read_dir(root.join(folder)).expect("a folder of the repository");
    listing
        .map(|entry| entry.expect("an entry of the repository"))
        .filter_map(|entry| {
            let is_folder = entry.file_type().ok()?.is_dir();
            let name = entry.file_name().to_string_lossy().into_owned();
            let slash = if is_folder { "/" } else { "" };
            let path = format!("{}{slash}", folder.join(&name).to_string_lossy());
            (!ignored.covers(&path)).then(|| (format!("{name}{slash}"), is_folder))
        })
        .collect()
}

/// What .gitignore leaves out, for the shapes of lines that ours has: `/a/b/`, `name/`, `*.end`.
struct Ignored(Vec<String>);

impl Ignored {
    fn read(root: &Path) -> Self {
        let text = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines = lines
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned);
        Self(
            [
                ".git/",
                "/.git",
                "target/",
                "node_modules/",
                ".venv/",
                "__pycache__/",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain(lines)
            .collect(),
        )
    }

    /// Takes a path from the root, with a slash at the end for a folder.
    fn covers(&self, path: &str) -> bool {
        self.0.iter().any(
            |line| match (line.strip_prefix('/'), line.strip_prefix('*')) {
                (Some(from_root), _) => path == from_root,
                (_, Some(end)) => path.ends_with(end),
                _ => path == line || path.ends_with(&format!("/{line}")),
            },
        )
    }
}

/// A text file; its path is from the root, with slashes.
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.replace('\\', "/"),
            text: text.to_owned(),
        }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Below this folder, or this very file.
    pub(crate) fn is_in(&self, place: &str) -> bool {
        self.path
            .strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// One line of a report.
    pub(crate) fn place(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    pub(crate) fn code(&self) -> Code {
        Code::of(&self.text)
    }
}

/// The Rust files that end up in what is published, each without its test code.
pub(crate) fn published(files: &[File]) -> Vec<(&File, Code)> {
    const FOLDERS: [&str; 4] = [
        "server/src",
        "server/engine/src",
        "protocol/src",
        "client/rust/src",
    ];
    let mut sources: Vec<(&File, Code)> = files
        .iter()
        .filter(|file| file.is_rust() && FOLDERS.iter().any(|folder| file.is_in(folder)))
        .map(|file| (file, file.code()))
        .collect();
    let mut test_files = Vec::new();
    for (file, code) in &mut sources {
        for module in code.remove_tests() {
            let folder = module_folder(&file.path);
            test_files.push(format!("{folder}/{module}.rs"));
            test_files.push(format!("{folder}/{module}/mod.rs"));
        }
    }
    sources.retain(|(file, _)| !test_files.contains(&file.path));
    sources
}

/// Where the modules that this file declares are found.
fn module_folder(path: &str) -> &str {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "mod.rs" | "lib.rs" | "main.rs" => folder,
        _ => path.trim_end_matches(".rs"),
    }
}

#[test]
fn a_file_declared_for_tests_is_not_published() {
    let files = [
        File::new(
            "server/src/store/mod.rs",
            "//! Store.\n#[cfg(test)]\nmod suite;\nmod log;\n",
        ),
        File::new("server/src/store/suite.rs", "//! Suite.\n"),
        File::new("server/src/store/log.rs", "//! Log.\n"),
        File::new("tests/suite/main.rs", "//! Suite.\n"),
    ];
    let paths: Vec<&str> = published(&files)
        .iter()
        .map(|(file, _)| file.path.as_str())
        .collect();
    assert_eq!(
        paths,
        ["server/src/store/mod.rs", "server/src/store/log.rs"]
    );
}
