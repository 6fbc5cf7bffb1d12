//! A download that walls stopped: which file an op wanted at run time that its lockfile does not name.
//!
//! Pure; reads the words of exceptions as Python's libraries write them. Not here: the walls.

use protocol::{RunError, RunErrorKind};

/// What says that there is no network, in the exceptions of the libraries that custom nodes download with: urllib,
/// requests and urllib3, httpx, aiohttp, huggingface_hub.
const NO_NETWORK: [&str; 9] = [
    "gaierror",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Failed to resolve",
    "Network is unreachable",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "LocalEntryNotFoundError",
    "Max retries exceeded with url",
];
/// The longest URL that is shown.
const LONGEST: usize = 500;

/// The error of a run whose op wanted to download something, if that is what this one is. `said` are the lines of the
/// process during the run.
pub(super) fn undeclared(error: &RunError, said: &[String]) -> Option<RunError> {
    let op = error.op.as_ref().filter(|_| error.kind == RunErrorKind::OpFailed)?;
    let traceback = op.traceback.as_deref().unwrap_or_default();
    if !NO_NETWORK.iter().any(|words| error.detail.contains(words) || traceback.contains(words)) {
        return None;
    }
    let texts =
        [error.detail.as_str()].into_iter().chain(said.iter().rev().map(String::as_str)).chain([traceback]);
    let url = texts.clone().find_map(url_in).or_else(|| texts.clone().find_map(pool_in));
    let what = url.map_or_else(|| "a file".to_owned(), |url| format!("`{url}`"));
    let (id, class) = (&op.id, &op.class);
    let detail = format!(
        "op `{id}` ({class}) wants to download {what}, which the lockfile does not name, and runs have no network: \
         pack it again with `comfy-farm pack --trace`, which runs the workflow once and records what it fetches, and \
         deploy that"
    );
    Some(RunError { kind: RunErrorKind::UndeclaredFile, detail, op: error.op.clone() })
}

/// The first address in a text.
fn url_in(text: &str) -> Option<String> {
    let at = ["https://", "http://"].iter().filter_map(|scheme| text.find(scheme)).min()?;
    let ends = |c: char| c.is_whitespace() || "\"'`<>)],;".contains(c);
    let url = text[at..].split(ends).next()?.trim_end_matches(['.', ':']);
    Some(url.chars().take(LONGEST).collect())
}

/// What urllib3 writes: `HTTPSConnectionPool(host='x', port=443): Max retries exceeded with url: /y`.
fn pool_in(text: &str) -> Option<String> {
    let host = text.split_once("ConnectionPool(host='")?.1.split('\'').next()?;
    let path = text.split_once("exceeded with url: ")?.1.split_whitespace().next()?;
    Some(format!("https://{host}{path}").chars().take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use protocol::FailedOp;

    use super::*;

    fn check(detail: &str, traceback: &str, said: &[&str], expected: Option<&str>) {
        let op = FailedOp { id: "2".into(), class: "Remote".into(), traceback: Some(traceback.into()) };
        let error = RunError { kind: RunErrorKind::OpFailed, detail: detail.into(), op: Some(op) };
        let said: Vec<String> = said.iter().map(|line| (*line).to_owned()).collect();
        let found = undeclared(&error, &said);
        assert_eq!(found.is_some(), expected.is_some(), "{detail}");
        if let (Some(found), Some(expected)) = (found, expected) {
            assert_eq!(found.kind, RunErrorKind::UndeclaredFile);
            assert!(found.detail.contains(&format!("wants to download {expected},")), "{}", found.detail);
        }
    }

    #[test]
    fn downloads_are_told_with_their_addresses() {
        let urllib = "raised urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>";
        let line = "Downloading: \"https://dl.example.org/vgg.pth\" to /x/vgg.pth";
        check(urllib, "", &["got prompt", line], Some("`https://dl.example.org/vgg.pth`"));
        check(urllib, "", &["got prompt"], Some("a file"));
        let requests = "raised requests.exceptions.ConnectionError: HTTPSConnectionPool(host='hub.example.org', \
                        port=443): Max retries exceeded with url: /a/b.bin (Caused by NameResolutionError(…))";
        check(requests, "", &[], Some("`https://hub.example.org/a/b.bin`"));
        let hub =
            "raised huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate";
        check(hub, "requests.get('https://huggingface.co/x/y')", &[], Some("`https://huggingface.co/x/y`"));
    }

    #[test]
    fn other_exceptions_are_what_they_are() {
        check("raised ValueError: see https://example.org/docs", "", &[], None);
        check("raised RuntimeError: shapes do not match", "", &["https://example.org"], None);
    }
}
