//! The rules of the house that no compiler checks.

use std::path::{Path, PathBuf};

fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for folder in ["protocol", "mesh", "node", "coordinator", "web", "cli", "benches", "fuzz", "tests"] {
        collect(&root.join(folder), &mut files);
    }
    assert!(files.len() > 50, "the sources are not where they were");
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "node_modules" && name != "target" {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn every_file_says_what_it_owns() {
    let silent: Vec<_> = sources().into_iter().filter(|path| !read(path).starts_with("//! ")).collect();
    assert!(silent.is_empty(), "these begin without `//!`: {silent:#?}");
}

#[test]
fn no_file_is_longer_than_a_reader_bears() {
    let long = sources().into_iter().filter(|path| read(path).lines().count() > 600);
    let long: Vec<_> = long.collect();
    assert!(long.is_empty(), "split these: {long:#?}");
}

#[test]
fn names_that_say_nothing_are_not_used() {
    let banned = ["utils", "common", "types", "helpers", "misc"];
    let named = |path: &PathBuf| {
        path.file_stem().is_some_and(|stem| banned.contains(&stem.to_string_lossy().as_ref()))
    };
    let found: Vec<_> = sources().into_iter().filter(named).collect();
    assert!(found.is_empty(), "{found:#?}");
    let modules: Vec<_> =
        sources().into_iter().filter(|path| path.file_name().is_some_and(|name| name == "mod.rs")).collect();
    assert!(modules.is_empty(), "`x.rs` stands beside `x/`: {modules:#?}");
}

/// Heavyweight libraries have one home each.
#[test]
fn libraries_are_named_only_where_they_live() {
    let homes: [(&str, &[&str]); 7] = [
        ("libp2p", &["/mesh/"]),
        ("quinn::", &["/mesh/"]),
        ("rustls::", &["/mesh/"]),
        ("axum", &["/coordinator/src/api", "/node/src/engine/comfyui/"]),
        ("utoipa", &["/coordinator/src/api"]),
        ("sqlx", &["/coordinator/src/store"]),
        ("bincode::", &["/protocol/src/codec.rs"]),
    ];
    for path in sources() {
        let shown = path.to_string_lossy().replace("/tests/..", "");
        if shown.contains("/tests/") {
            continue;
        }
        for (line_number, line) in read(&path).lines().enumerate() {
            let code = line.trim_start();
            for (library, homes) in homes {
                let used = code.starts_with(&format!("use {}", library.trim_end_matches(':')))
                    && !homes.iter().any(|home| shown.contains(home));
                assert!(!used, "{shown}:{}: `{library}` lives in {homes:?}", line_number + 1);
            }
        }
    }
}

/// What decides must not touch the world, or it cannot be tested by a made-up one.
#[test]
fn pure_cores_do_no_io_and_read_no_clock() {
    let pure =
        ["/coordinator/src/state", "/coordinator/src/schedule", "/node/src/slots.rs", "/protocol/src/"];
    let banned = [
        "tokio::",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "Instant::now",
        "SystemTime::now",
        "now_utc()",
        "Uuid::now",
    ];
    for path in sources() {
        let shown = path.to_string_lossy().replace("/tests/..", "");
        if !pure.iter().any(|part| shown.contains(part)) {
            continue;
        }
        let text = read(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_test = shown.contains("/tests") || shown.ends_with("facts.rs");
        for word in banned {
            assert!(is_test || !code.contains(word), "{shown} uses `{word}`");
        }
    }
}
