//! Recorded bundles and hostile zips, read.

use std::io::{Cursor, Write};

use proptest::prelude::*;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::facts;
use crate::lockfile::{CustomNode, Pin};

/// What the sink took: names and bytes, in order.
type Taken = Vec<(String, Vec<u8>)>;

fn read_with(zip: &[u8], limits: &BundleLimits) -> (Result<Bundle, BundleError>, Taken) {
    let mut taken = Taken::new();
    let bundle = read_bundle(Cursor::new(zip), limits, &mut |name, reader| {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        let blob = BlobRef::of(&bytes);
        taken.push((name.to_owned(), bytes));
        Ok(blob)
    });
    (bundle, taken)
}

fn read(zip: &[u8]) -> (Result<Bundle, BundleError>, Taken) {
    read_with(zip, &BundleLimits::default())
}

fn recorded(name: &str) -> Vec<u8> {
    facts::bytes(&format!("comfy-pack/cpack/{name}.cpack.zip"))
}

/// A recorded bundle is taken, with exactly these repairs (a part of the words of each).
fn assert_taken(name: &str, repairs: &[&str]) -> Bundle {
    let bundle = read(&recorded(name)).0.unwrap_or_else(|error| panic!("{name}: {error}"));
    let said: Vec<String> = bundle.repairs.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), repairs.len(), "{name}: {said:#?}");
    for (said, expected) in said.iter().zip(repairs) {
        assert!(said.contains(expected), "{name}: {said}");
    }
    bundle
}

/// A zip is refused with these words, and nothing of it was kept.
fn assert_refused(zip: &[u8], limits: &BundleLimits, message: &str) {
    let (bundle, taken) = read_with(zip, limits);
    let error = bundle.unwrap_err();
    let chain = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    assert!(chain.contains(message), "{chain}");
    assert!(taken.is_empty(), "refused, and yet {} parts were kept", taken.len());
}

/// The author's own package, which is on nobody else's disk.
const LOCAL_PACKAGE: &str = "`mylocal @ file:///opt/mylocal` is left out: it lies on its author's disk";
const TINY_MODEL: &str = "snapshot.json, model `models/checkpoints/tiny.safetensors`";

#[test]
fn newer_format_is_read_whole() {
    let bundle = assert_taken("tiny", &[LOCAL_PACKAGE]);
    let lockfile = &bundle.lockfile;
    assert_eq!(lockfile.python.as_ref().map(|python| python.as_str()), Some("3.11"));
    let comfyui = lockfile.comfyui.as_ref().map(|pin| pin.commit.as_str());
    assert_eq!(comfyui, Some("ca457f7ba1ff33bd0d724cd7324131509efcf3ec"));
    assert_eq!(lockfile.custom_nodes.len(), 5);
    assert!(matches!(&lockfile.custom_nodes[2], CustomNode::Git { disabled: true, .. }));
    let packages: Vec<&str> = lockfile.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(packages, ["aiohttp", "clip", "comfy-pack", "onnxruntime-gpu", "pillow", "torch"]);
    assert!(matches!(&lockfile.packages[1].pin, Pin::Git(url) if url.as_str().contains("CLIP.git@dcba3cb")));
    assert_eq!(lockfile.models.len(), 2);
    assert_eq!(lockfile.models[0].sources.len(), 1);
    assert!(lockfile.models[1].disabled);
    let inputs: Vec<&str> = bundle.manifest.inputs.keys().map(String::as_str).collect();
    assert_eq!(inputs, ["example.png", "sub/grade.cube"]);
    assert!(bundle.manifest.editor_workflow.is_some());
    assert_eq!(bundle.workflow.classes().len(), 8);
}

#[test]
fn older_format_is_read_whole() {
    let bundle = assert_taken("example-old-format", &[]);
    let lockfile = &bundle.lockfile;
    assert_eq!(lockfile.custom_nodes.len(), 2);
    assert!(lockfile.packages.len() > 60, "{}", lockfile.packages.len());
    // Each of these stands twice, once without a version.
    for name in ["comfy-cli", "fastapi"] {
        assert!(lockfile.packages.iter().any(|package| package.name.as_str() == name), "{name}");
    }
    let source = &lockfile.models[0].sources[0].url;
    assert!(source.as_str().ends_with("spriteShaper%20(1).safetensors?download=true"), "{source}");
}

#[test]
fn civitai_source_and_unselected_models_are_no_faults() {
    let civitai = assert_taken("civitai-source", &[LOCAL_PACKAGE]);
    assert_eq!(civitai.lockfile.models[0].sources[0].url.host(), "civitai.com");
    let nothing = assert_taken("tiny-nothing-selected", &[LOCAL_PACKAGE]);
    assert!(nothing.manifest.inputs.is_empty());
}

#[test]
fn bad_no_manager_is_taken_and_built_without_it() {
    assert_taken("bad-no-manager", &[LOCAL_PACKAGE, "ComfyUI-Manager is not recorded with a commit"]);
}

#[test]
fn bad_cnr_manager_is_taken_with_the_registrys_version() {
    let bundle =
        assert_taken("bad-cnr-manager", &[LOCAL_PACKAGE, "ComfyUI-Manager is not recorded with a commit"]);
    let manager = |node: &CustomNode| matches!(node, CustomNode::Registry { id, .. } if id.as_str() == "comfyui-manager");
    assert!(bundle.lockfile.custom_nodes.iter().any(manager));
}

#[test]
fn bad_no_sha256_is_taken_and_the_model_only_used_where_it_lies() {
    let repair = format!("{TINY_MODEL}: has no sha256: it cannot be fetched");
    let bundle = assert_taken("bad-no-sha256", &[LOCAL_PACKAGE, &repair]);
    assert_eq!(bundle.lockfile.models[0].sha256, None);
}

#[test]
fn bad_no_source_is_taken_and_the_model_comes_from_peers() {
    let repair = format!("{TINY_MODEL}: has no source: it is taken from peers");
    let bundle = assert_taken("bad-no-source", &[LOCAL_PACKAGE, &repair]);
    assert!(bundle.lockfile.models[0].sources.is_empty());
}

#[test]
fn bad_no_snapshot_and_bad_no_workflow_are_refused_with_what_to_do() {
    let limits = BundleLimits::default();
    assert_refused(
        &recorded("bad-no-snapshot"),
        &limits,
        "bundle has no `snapshot.json`: it names no versions",
    );
    assert_refused(
        &recorded("bad-no-workflow"),
        &limits,
        "bundle has no `workflow_api.json`: save it in ComfyUI",
    );
}

#[test]
fn evil_model_path_is_refused() {
    let message = "snapshot.json, `models` 1: `../outside/evil.safetensors` is not a path below `models/`";
    assert_refused(&recorded("evil-model-path"), &BundleLimits::default(), message);
}

#[test]
fn evil_token_host_is_taken_without_that_source() {
    let dropped = "looks like Hugging Face and lies on `example.net`: left out, so that no token";
    let unsourced = format!("{TINY_MODEL}: has no source");
    let bundle = assert_taken("evil-token-host", &[LOCAL_PACKAGE, dropped, &unsourced]);
    assert!(bundle.lockfile.models[0].sources.is_empty());
}

#[test]
fn lockfile_of_our_own_says_more_than_the_snapshot_and_is_taken() {
    let own = br#"{"format":1,"comfyui":{"url":"https://git.example.org/fork.git","commit":"ca457f7ba1ff33bd0d724cd7324131509efcf3ec"}}"#;
    let zip = |lockfile: &[u8]| {
        let workflow = read(&recorded("tiny")).0.expect("a bundle").workflow.to_json().to_string();
        let entries =
            [("workflow_api.json", workflow.as_bytes()), ("snapshot.json", b"{}"), (LOCKFILE, lockfile)];
        zip_of(entries)
    };
    let bundle = read(&zip(own)).0.expect("it is taken");
    assert_eq!(bundle.lockfile, Lockfile::parse(own).expect("a lockfile"));
    let refusal = "`lockfile.json` of the bundle cannot be used: lockfile of format 2";
    assert_refused(&zip(br#"{"format":2}"#), &BundleLimits::default(), refusal);
}

#[test]
fn hash_is_of_the_contents_and_not_of_the_zip() {
    let stored = recorded("tiny");
    let mut archive = zip::ZipArchive::new(Cursor::new(&stored)).unwrap();
    let mut entries = Vec::new();
    for index in (0..archive.len()).rev() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        entries.push((entry.name().unwrap().into_owned(), bytes));
    }
    entries.push(("service.py".to_owned(), b"extra".to_vec()));
    let deflated = zip_of(entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    assert_ne!(deflated, stored);
    let (first, second) = (read(&stored).0.unwrap(), read(&deflated).0.unwrap());
    assert_eq!(first, second);
    assert_eq!(first.hash(), second.hash());
}

#[test]
fn canonical_manifest_is_this() {
    let blob = BlobRef::of(b"x");
    let manifest = BundleManifest {
        format: 1,
        workflow: blob,
        editor_workflow: None,
        lockfile: blob,
        inputs: [("sub/a.png".to_owned(), blob)].into(),
        interface: Exposure::default(),
    };
    let blob = format!(r#"{{"hash":"{}","size":1}}"#, blob.hash);
    let expected =
        format!(r#"{{"format":1,"inputs":{{"sub/a.png":{blob}}},"lockfile":{blob},"workflow":{blob}}}"#);
    assert_eq!(String::from_utf8(manifest.to_canonical_json()).unwrap(), expected);
    assert_eq!(manifest.hash().0, BlobHash::of(expected.as_bytes()));
}

#[test]
fn bundle_has_the_interface_of_its_author_and_other_bytes_there_are_refused() {
    let (bundle, _) = read(&bundle_with(&[("interface.json", br#"{"inputs":["x=1.y"],"outputs":["1"]}"#)]));
    let bundle = bundle.unwrap();
    assert_eq!(bundle.manifest.interface.inputs, ["x=1.y".parse().unwrap()]);
    let without = read(&bundle_with(&[])).0.unwrap();
    assert_ne!(bundle.hash(), without.hash());
    let error = bundle.interface().unwrap_err().to_string();
    assert!(error.contains("op `1` (`A`) has no input `y`"), "{error}");
    let refused = read(&bundle_with(&[("interface.json", br#"{"inputs":["x"]}"#)])).0.unwrap_err();
    assert!(crate::error_chain(&refused).contains("`interface.json` of the bundle"), "{refused}");
}

#[test]
fn bare_workflow_is_a_bundle_that_pins_nothing() {
    let bytes = facts::bytes("comfy-pack/example/workflow_api.json");
    let bundle = Bundle::from_workflow(&bytes, &mut |_, reader| {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        Ok(BlobRef::of(&bytes))
    });
    let bundle = bundle.unwrap();
    assert_eq!(bundle.manifest.workflow, BlobRef::of(&bytes));
    assert_eq!(bundle.lockfile, Lockfile::default());
}

const GRAPH: &[u8] = br#"{"1": {"class_type": "A", "inputs": {}}}"#;
const EMPTY_SNAPSHOT: &[u8] = br#"{"comfyui": null, "pips": {}, "models": []}"#;

fn zip_of<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A good bundle and these entries.
fn bundle_with(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let good = [("workflow_api.json", GRAPH), ("snapshot.json", EMPTY_SNAPSHOT)];
    zip_of(good.into_iter().chain(entries.iter().copied()))
}

/// Every occurrence of `from` in the zip's own tables becomes `to`, of the same length.
fn patched(zip: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut zip = zip.to_vec();
    let places: Vec<usize> =
        (0..=zip.len() - from.len()).filter(|&place| zip[place..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for place in places {
        zip[place..place + to.len()].copy_from_slice(to);
    }
    zip
}

#[test]
fn names_that_lead_elsewhere_are_refused_with_the_name() {
    let plain = bundle_with(&[("input/abcdef.png", b"x")]);
    assert!(read(&plain).0.is_ok());
    let check = |name: &str, fault: &str| {
        let zip = patched(&plain, b"input/abcdef.png", name.as_bytes());
        assert_refused(&zip, &BundleLimits::default(), fault);
    };
    check("input/../../a.sh", "entry `input/../../a.sh` of the bundle has `..`");
    check("/etc/cron.d/evil", "entry `/etc/cron.d/evil` of the bundle is absolute");
    check("input\\..\\abc.png", "has a backslash");
    check("C:/input/abc.png", "begins with a drive");
    check("input//abcde.png", "has an empty part");
    check("input/./abcd.png", "has an empty part");
    check("input/abc\0ef.png", "entry `input/abcef.png` of the bundle has control characters");
    // Also where nobody would ever read it.
    check("../../authorized", "entry `../../authorized`");
}

#[test]
fn duplicates_links_and_encrypted_entries_are_refused_with_the_name() {
    let limits = BundleLimits::default();
    let two = bundle_with(&[("input/a.png", b"x"), ("input/b.png", b"y")]);
    assert_refused(&patched(&two, b"input/b.png", b"input/a.png"), &limits, "two entries `input/a.png`");

    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.add_symlink("input/link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    let link = writer.finish().unwrap().into_inner();
    assert_refused(&link, &limits, "entry `input/link` of the bundle is not a plain file");

    // The directory's header of an entry: signature, versions, then the flags, of which bit 0 is encryption.
    let mut encrypted = bundle_with(&[]);
    let header = encrypted.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    encrypted[header + 8] |= 1;
    assert_refused(&encrypted, &limits, "entry `snapshot.json` of the bundle is encrypted");
}

#[test]
fn entries_that_inflate_past_a_limit_are_refused_with_the_name() {
    let zeros = vec![0; 1 << 20];
    let bomb = bundle_with(&[("input/bomb", &zeros), ("input/bomb2", &zeros)]);
    assert!(bomb.len() < 10_000);
    let limits = BundleLimits { entry_size: 1 << 19, ..BundleLimits::default() };
    assert_refused(&bomb, &limits, "entry `input/bomb` of the bundle inflates to more than 524288 bytes");
    let limits = BundleLimits { total_size: 3 << 19, ..BundleLimits::default() };
    assert_refused(&bomb, &limits, "more than 1572864 bytes; entry `input/bomb2` was one too many");
    let limits = BundleLimits { entries: 3, ..BundleLimits::default() };
    assert_refused(&bomb, &limits, "bundle has 4 entries: at most 3");
    // An entry that claims to be small.
    let lying = patched(&bomb, &(1_u32 << 20).to_le_bytes(), &7_u32.to_le_bytes());
    let limits = BundleLimits { entry_size: 1 << 19, ..BundleLimits::default() };
    assert_refused(&lying, &limits, "entry `input/bomb`");
}

#[test]
fn damaged_entry_is_refused_before_anything_is_kept() {
    let good = zip_of([("workflow_api.json", GRAPH), ("snapshot.json", EMPTY_SNAPSHOT)]);
    assert!(read(&good).0.is_ok());
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in
        [("workflow_api.json", GRAPH), ("snapshot.json", EMPTY_SNAPSHOT), ("input/x", b"abcdef")]
    {
        writer.start_file(name, stored).unwrap();
        writer.write_all(bytes).unwrap();
    }
    let zip = writer.finish().unwrap().into_inner();
    assert_refused(
        &patched(&zip, b"abcdef", b"abcdeg"),
        &BundleLimits::default(),
        "entry `input/x` of the bundle cannot be read",
    );
}

#[test]
fn snapshots_with_gaps_are_repaired_and_with_traps_refused() {
    let read_snapshot = |snapshot: serde_json::Value| {
        let bytes = snapshot.to_string();
        read(&zip_of([("workflow_api.json", GRAPH), ("snapshot.json", bytes.as_bytes())])).0
    };
    let repaired = |snapshot: serde_json::Value, expected: &str| {
        let bundle = read_snapshot(snapshot).unwrap();
        let said: Vec<String> = bundle.repairs.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|said| said.contains(expected)), "{expected}: {said:#?}");
    };
    let refused = |snapshot: serde_json::Value, expected: &str| {
        let error = read_snapshot(snapshot).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let node = |url: &str, hash: serde_json::Value| serde_json::json!({"pips": {}, "git_custom_nodes": { url: {"hash": hash, "disabled": false} }});
    repaired(serde_json::json!({"pips": {}, "comfyui": null}), "no commit of ComfyUI is recorded");
    repaired(node("null", commit.into()), "`git_custom_nodes` `null`: has no repository");
    repaired(
        node("https://github.com/a/b", serde_json::Value::Null),
        "`https://github.com/a/b`: has no commit",
    );
    repaired(
        node("git@github.com:a/b.git", commit.into()),
        "needs an ssh key: its repository is taken over https",
    );
    repaired(serde_json::json!({"comfyui": commit}), "requirements.txt: is missing");
    let file = |name: &str| serde_json::json!({"pips": {}, "file_custom_nodes": [{"filename": name, "disabled": false}]});
    repaired(file("mine.py"), "`mine.py` is not in the bundle");
    let model = |source: serde_json::Value| {
        serde_json::json!({"pips": {}, "models": [{
            "filename": "models\\vae\\x.pt", "size": 3, "disabled": false, "sha256": "00".repeat(32), "source": source}]})
    };
    let scraped = serde_json::json!({
        "download_url": "x.pt", "repo": "a/b", "commit": commit, "path": "x.pt", "source": "huggingface"});
    repaired(model(scraped), "made from repository, commit and path");

    refused(node("ext::sh -c id", commit.into()), "`ext::sh -c id` is not an https URL");
    refused(node("https://github.com/a/b", "--upload-pack=x".into()), "is not a commit");
    refused(file("../mine.py"), "`../mine.py` is not a name");
    refused(model(serde_json::json!({"download_url": "http://example.org/x"})), "is not an https URL");
    refused(model(serde_json::json!({"download_url": "file:///etc/passwd"})), "is not an https URL");
    refused(model(serde_json::json!({"download_url": "https://192.168.1.1/x"})), "of a public host");
    refused(
        serde_json::json!({"pips": {}, "comfyui": "main"}),
        "snapshot.json, `comfyui`: `main` is not a commit",
    );
    refused(serde_json::json!({"pips": []}), "snapshot.json, `pips` is a list, not an object");
    refused(serde_json::json!([]), "snapshot.json is a list, not an object");
}

#[test]
fn sink_that_fails_ends_the_reading_with_the_entrys_name() {
    let error = read_bundle(Cursor::new(recorded("tiny")), &BundleLimits::default(), &mut |_, _| {
        Err(io::Error::other("disk full"))
    });
    assert_eq!(error.unwrap_err().to_string(), "entry `workflow_api.json` of the bundle could not be stored");
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes).0.is_err());
    }

    /// A good bundle with some bytes changed gets past more of the checks.
    #[test]
    fn changed_bundle_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut zip = bundle_with(&[("input/a.png", b"some bytes"), ("workflow.json", b"{}")]);
        for (place, byte) in changes {
            let place = place.index(zip.len());
            zip[place] = byte;
        }
        let limits = BundleLimits { entry_size: 1 << 20, total_size: 1 << 21, ..BundleLimits::default() };
        let _ = read_with(&zip, &limits);
    }
}
