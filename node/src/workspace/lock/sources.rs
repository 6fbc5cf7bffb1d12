//! Where a model can be fetched from, as the programs that downloaded it wrote down beside it.
//!
//! Not here: what the internet would say; nothing is asked.

use std::fs;
use std::path::Path;

use protocol::{HttpsUrl, Sha256};
use serde_json::Value;

/// The endings of files beside a model that tell where it is from: of Civitai Helper, LoRA Manager and Stability
/// Matrix.
const BESIDE: [&str; 3] = ["civitai.info", "metadata.json", "cm-info.json"];
/// The largest such file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// What a secret in an address is called, without the signs between its words.
const SECRETS: [&str; 12] = [
    "accesskey",
    "accesstoken",
    "apikey",
    "apitoken",
    "auth",
    "authorization",
    "authtoken",
    "hftoken",
    "key",
    "password",
    "secret",
    "token",
];

/// The addresses that the files beside a model give for exactly this file.
pub(super) fn beside(model: &Path, sha256: Sha256, notes: &mut Vec<String>) -> Vec<HttpsUrl> {
    let mut urls = Vec::new();
    for path in BESIDE.map(|ending| model.with_extension(ending)) {
        let is_small =
            fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_FILE);
        let read = is_small.then(|| fs::read(&path).ok()).flatten();
        let Some(told) = read.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else {
            continue;
        };
        match url_in(&told, &sha256.to_string()) {
            Told::Url(url) => urls.extend(without_token(&url).parse::<HttpsUrl>()),
            Told::OfAnother => {
                notes.push(format!("`{}` is of another file, and not believed", path.display()))
            }
            Told::Nothing => {}
        }
    }
    urls
}

enum Told {
    Url(String),
    OfAnother,
    Nothing,
}

/// What such a file says. Of the files of one version the one with this hash counts.
fn url_in(told: &Value, sha256: &str) -> Told {
    // LoRA Manager keeps Civitai's own answer in a field.
    let version = if told["civitai"].is_object() { &told["civitai"] } else { told };
    let files = files_of(version);
    let this = files.iter().find(|file| hash_of(file).is_some_and(|hash| hash == sha256));
    let hashes: Vec<String> = [told].into_iter().chain(files).filter_map(hash_of).collect();
    if !hashes.is_empty() && !hashes.iter().any(|hash| hash == sha256) {
        return Told::OfAnother;
    }
    let by_version = || {
        let id = version["VersionId"].as_u64()?;
        Some(format!("https://civitai.com/api/download/models/{id}"))
    };
    match this.and_then(url_of).or_else(|| url_of(version)).or_else(|| url_of(told)).or_else(by_version) {
        Some(url) => Told::Url(url),
        None => Told::Nothing,
    }
}

/// Where the file with this hash can be fetched from, as Civitai says of one version.
pub(super) fn url_of_file(version: &Value, sha256: &str) -> Option<String> {
    let files = files_of(version);
    let file = files.iter().find(|file| hash_of(file).is_some_and(|hash| hash == sha256))?;
    // The address of a version is that of its only file.
    url_of(file).or_else(|| url_of(version).filter(|_| files.len() == 1))
}

fn files_of(version: &Value) -> &[Value] {
    version["files"].as_array().map_or(&[], Vec::as_slice)
}

fn hash_of(value: &Value) -> Option<String> {
    let hash = [&value["hashes"]["SHA256"], &value["Hashes"]["SHA256"], &value["sha256"]];
    hash.into_iter().find_map(|hash| hash.as_str().map(str::to_lowercase))
}

fn url_of(value: &Value) -> Option<String> {
    let url = ["downloadUrl", "download_url", "DownloadUrl"].into_iter().find_map(|key| value[key].as_str());
    url.map(str::to_owned)
}

/// An address without the secret that may stand in its query.
pub fn without_token(url: &str) -> String {
    let Some((path, query)) = url.split_once('?') else { return url.to_owned() };
    let is_secret = |part: &&str| {
        let name = part.split('=').next().unwrap_or_default().to_ascii_lowercase().replace(['_', '-'], "");
        SECRETS.contains(&name.as_str())
    };
    let kept: Vec<&str> = query.split('&').filter(|part| !is_secret(part)).collect();
    if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sources_beside_a_model_are_believed_for_the_file_that_they_name() {
        let sha256 = Sha256([0xab; 32]);
        let (own, other) = (sha256.to_string().to_uppercase(), "00".repeat(32));
        let file = |hash: &str, id: u32| json!({"hashes": {"SHA256": hash}, "downloadUrl": format!("https://civitai.com/api/download/models/{id}")});
        let check = |ending: &str, told: Value, expected: &[&str], noted: bool| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            fs::write(folder.path().join(format!("x.v1.{ending}")), told.to_string()).expect("own folder");
            let mut notes = Vec::new();
            let urls = beside(&folder.path().join("x.v1.safetensors"), sha256, &mut notes);
            assert_eq!(urls.iter().map(HttpsUrl::as_str).collect::<Vec<_>>(), expected, "{ending} {told}");
            assert_eq!(!notes.is_empty(), noted, "{notes:?}");
        };
        let seven = "https://civitai.com/api/download/models/7";
        check("civitai.info", json!({"files": [file(&other, 1), file(&own, 7)]}), &[seven], false);
        check("civitai.info", json!({"files": [file(&other, 1)]}), &[], true);
        check(
            "civitai.info",
            json!({"downloadUrl": format!("{seven}?token=secret&type=Model")}),
            &[&format!("{seven}?type=Model")],
            false,
        );
        check("metadata.json", json!({"sha256": own, "civitai": {"downloadUrl": seven}}), &[seven], false);
        check("metadata.json", json!({"sha256": other, "civitai": {"downloadUrl": seven}}), &[], true);
        check("cm-info.json", json!({"VersionId": 7, "Hashes": {"SHA256": own}}), &[seven], false);
        check("metadata.json", json!({"downloadUrl": "http://127.0.0.1/x"}), &[], false);
        check("metadata.json", json!(["x"]), &[], false);
    }

    #[test]
    fn secrets_in_an_address_are_left_out() {
        let check = |url: &str, expected: &str| assert_eq!(without_token(url), expected);
        check("https://a.org/x", "https://a.org/x");
        check("https://a.org/x?token=1", "https://a.org/x");
        check("https://a.org/x?a=1&API_KEY=2&b=3", "https://a.org/x?a=1&b=3");
        check("https://a.org/x?access_token=1&apikey=2&Api-Key=3&auth=4", "https://a.org/x");
        check("https://a.org/x?monkey=1&author=2", "https://a.org/x?monkey=1&author=2");
    }
}
