//! A download that walls stopped: which file or package code wanted that its lockfile does not name.
//!
//! Pure; reads the words of exceptions as Python's libraries write them. Not here: the walls.

use std::fmt;

use protocol::{RunError, RunErrorKind};

/// What says that there is no network, in the exceptions of the libraries that custom nodes download with: urllib,
/// requests and urllib3, httpx, aiohttp, huggingface_hub, transformers and diffusers, and in the words of git.
const NO_NETWORK: [&str; 14] = [
    "gaierror",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Failed to resolve",
    "Network is unreachable",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "LocalEntryNotFoundError",
    "Max retries exceeded with url",
    "We couldn't connect to '",
    "outgoing traffic has been disabled",
    "OfflineModeIsEnabled",
    "dns error: failed to lookup address information",
    "Could not resolve host",
];
/// What programs say of that: git and curl, wget, aria2.
const PROGRAMS: [&str; 3] =
    ["Could not resolve host", "unable to resolve host address", "Could not contact DNS servers"];
/// How an exception tells that a program failed.
const FAILED_PROGRAM: [&str; 3] = ["CalledProcessError", "returned non-zero exit status", "GitCommandError"];
/// What stands between two exceptions of which the one led to the other.
const LED_TO: [&str; 2] = [
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
];
const TRACEBACK: &str = "Traceback (most recent call last):";
/// The longest URL that is shown.
const LONGEST: usize = 500;

/// What pip says last where a package is nowhere to be had.
const NO_PACKAGE: &str = "No matching distribution found for ";
/// What uv says after the package's name, which stands behind `Because`.
const NOT_CACHED: &str = " was not found in the cache";
/// How an exception begins that a failed installation ends in, at once or where the package is imported.
const NO_INSTALL: [&str; 3] = ["CalledProcessError", "ModuleNotFoundError", "ImportError"];

/// What code wanted from the network, of which it gets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Blocked {
    /// A file, at this address if that was to be seen.
    File(Option<String>),
    /// A Python package.
    Package(String),
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(Some(url)) => write!(f, "download `{url}`"),
            Self::File(None) => f.write_str("download a file"),
            Self::Package(name) => write!(f, "install package `{name}`"),
        }
    }
}

impl Blocked {
    /// The address of the file, if that was to be seen.
    pub(super) fn url(&self) -> Option<Box<str>> {
        match self {
            Self::File(url) => url.as_deref().map(Box::from),
            Self::Package(_) => None,
        }
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::File(_) => {
                "there is no network, so pack it again with `comfy-farm pack --trace`, which runs the workflow once and records what it \
                 fetches, and deploy that"
            }
            Self::Package(_) => {
                "nothing is installed at run time, so install it where the workflow was made, pack that again with `comfy-farm pack`, which records every \
                 package, and deploy that"
            }
        }
    }
}

/// What was wanted by code that failed with these words after it `said` these lines; `None` where it failed for another
/// reason. Packages are not to be had with a network either.
pub(super) fn blocked(failed: &[&str], said: &[String], has_network: bool) -> Option<Blocked> {
    let has = |words: &[&str]| words.iter().any(|words| failed.iter().any(|text| text.contains(words)));
    let package = said.iter().rev().find_map(|line| package_in(line));
    if let Some(name) = package.filter(|_| has(&NO_INSTALL)) {
        return Some(Blocked::Package(name.trim().chars().take(LONGEST).collect()));
    }
    let (first, others) = failed.split_first()?;
    let says = |lines: &[String], words: &[&str]| {
        lines.iter().any(|line| words.iter().any(|words| line.contains(words)))
    };
    let is_blocked = has(&NO_NETWORK)
        || has(&FAILED_PROGRAM) && says(said, &PROGRAMS)
        || chain_to(first, said).is_some_and(|chain| says(chain, &NO_NETWORK));
    if has_network || !is_blocked {
        return None;
    }
    let texts = std::iter::once(*first).chain(said.iter().rev().map(String::as_str));
    let mut texts: Vec<&str> = texts.chain(others.iter().copied()).collect();
    let url = texts.iter().copied().find_map(pool_in).or_else(|| texts.drain(..).find_map(url_in));
    Some(Blocked::File(url))
}

/// The name of a package that is nowhere to be had, by the words of pip or uv.
fn package_in(line: &str) -> Option<&str> {
    let of_pip = || Some(line.split_once(NO_PACKAGE)?.1);
    let of_uv = || Some(line.split_once(NOT_CACHED)?.0.rsplit_once("Because ")?.1);
    of_pip().or_else(of_uv)
}

/// The exceptions that led to the one that `failed` tells, if these are the last that were `said`: ComfyUI logs them all,
/// and reports the last one alone.
fn chain_to<'a>(failed: &str, said: &'a [String]) -> Option<&'a [String]> {
    let before = |end: usize| said[..end].iter().rposition(|line| line.starts_with(TRACEBACK));
    let mut begin = before(said.len())?;
    let is_end = |line: &&String| !line.is_empty() && !line.starts_with([' ', '\t']);
    let end = said[begin + 1..].iter().find(is_end)?;
    let message = end.split_once(": ").map_or(end.as_str(), |(_, message)| message);
    if !failed.contains(message) {
        return None;
    }
    let last = said.len();
    while let Some(link) = said[..begin].iter().rev().find(|line| !line.trim().is_empty())
        && LED_TO.iter().any(|words| link.starts_with(words))
        && let Some(earlier) = before(begin)
    {
        begin = earlier;
    }
    Some(&said[begin..last])
}

/// What was wanted by a process that ended of it: the exception that is the last that it `said` tells so. Words before it
/// prove nothing, because what does well without a network says that it has none.
pub(super) fn blocked_end(said: &[String], has_network: bool) -> Option<Blocked> {
    let exception = last_exception(said)?;
    let wanted = blocked(&[exception], said, has_network)?;
    let is_reason = match &wanted {
        Blocked::File(_) => true,
        Blocked::Package(name) => {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let module = name.split(|c| !is_name(c)).next().unwrap_or_default().replace('-', "_");
            exception.contains("CalledProcessError") || exception.contains(&module)
        }
    };
    is_reason.then_some(wanted)
}

/// The exception in which these lines end, if they end in one.
fn last_exception(said: &[String]) -> Option<&str> {
    let mut lines = said.iter().rev().map(String::as_str).filter(|line| !line.trim().is_empty());
    let exception = lines.next().filter(|line| !line.starts_with(' '))?;
    // Its frames are indented.
    let before = lines.find(|line| !line.starts_with(' '))?;
    before.starts_with(TRACEBACK).then_some(exception)
}

/// The error of a run whose op wanted something from the network, if that is what this one is. `said` are the lines of
/// the process during the run.
pub(super) fn undeclared(error: &RunError, said: &[String], has_network: bool) -> Option<RunError> {
    let op = error.op.as_ref().filter(|_| error.kind == RunErrorKind::OpFailed)?;
    let traceback = op.traceback.as_deref().unwrap_or_default();
    let wanted = blocked(&[&error.detail, traceback], said, has_network)?;
    let (id, class, hint) = (&op.id, &op.class, wanted.hint());
    let detail = format!("op `{id}` ({class}) wants to {wanted}, which the lockfile does not name: {hint}");
    Some(RunError { kind: RunErrorKind::UndeclaredFile, detail, url: wanted.url(), op: error.op.clone() })
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
        let error = RunError::of_op(RunErrorKind::OpFailed, detail, op);
        let said: Vec<String> = said.iter().map(|line| (*line).to_owned()).collect();
        let found = undeclared(&error, &said, false);
        assert_eq!(found.is_some(), expected.is_some(), "{detail}");
        if let (Some(found), Some(expected)) = (found, expected) {
            assert_eq!(found.kind, RunErrorKind::UndeclaredFile);
            assert!(found.detail.contains(&format!("wants to {expected},")), "{}", found.detail);
            let url = expected.strip_prefix("download `").map(|url| url.trim_end_matches('`'));
            assert_eq!(found.url.as_deref(), url, "{expected}");
        }
    }

    #[test]
    fn downloads_are_told_with_their_addresses() {
        let urllib = "raised urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>";
        let line = "Downloading: \"https://dl.example.org/vgg.pth\" to /x/vgg.pth";
        check(urllib, "", &["got prompt", line], Some("download `https://dl.example.org/vgg.pth`"));
        check(urllib, "", &["got prompt"], Some("download a file"));
        let requests = "raised requests.exceptions.ConnectionError: HTTPSConnectionPool(host='hub.example.org', \
                        port=443): Max retries exceeded with url: /a/b.bin (Caused by NameResolutionError(…))";
        check(requests, "", &[], Some("download `https://hub.example.org/a/b.bin`"));
        let hub =
            "raised huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate";
        let pip =
            "raised subprocess.CalledProcessError: Command '['python', '-m', 'pip', …]' returned non-zero";
        check(pip, "", &["ERROR: No matching distribution found for rembg"], Some("install package `rembg`"));
        check(pip, "", &["got prompt"], None);
        check(
            hub,
            "requests.get('https://huggingface.co/x/y')",
            &[],
            Some("download `https://huggingface.co/x/y`"),
        );
    }

    #[test]
    fn download_is_told_by_the_exceptions_that_led_to_the_last_one_and_by_the_words_of_programs() {
        let hub = "raised OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find \
                   them in the cached files.\nCheck your internet connection or see how to run the library in offline \
                   mode at 'https://huggingface.co/docs/transformers/installation#offline-mode'.";
        check(hub, "", &["got prompt"], Some("download `https://huggingface.co`"));
        let pool = "urllib3.exceptions.MaxRetryError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries \
                    exceeded with url: /a/b/resolve/main/config.json (Caused by NameResolutionError(…))";
        let chained = [
            "!!! Exception during processing !!! no weights",
            TRACEBACK,
            "  File \"connectionpool.py\", line 1, in urlopen",
            pool,
            "",
            LED_TO[1],
            "",
            TRACEBACK,
            "  File \"loader.py\", line 2, in load",
            "OSError: no weights",
            "",
        ];
        let file = Some("download `https://huggingface.co/a/b/resolve/main/config.json`");
        check("op `2` (Remote) raised OSError: no weights", "", &chained, file);
        check("op `2` (Remote) raised OSError: another", "", &chained, None);
        let apart: Vec<&str> = chained.into_iter().filter(|line| *line != LED_TO[1]).collect();
        check("op `2` (Remote) raised OSError: no weights", "", &apart, None);

        let failed = |program: &str| {
            format!(
                "raised subprocess.CalledProcessError: Command '{program}' returned non-zero exit status 128."
            )
        };
        let git = "fatal: unable to access 'https://github.com/a/b.git/': Could not resolve host: github.com";
        check(&failed("['git', 'clone', …]"), "", &[git], Some("download `https://github.com/a/b.git/`"));
        let commands = format!(
            "raised git.exc.GitCommandError: Cmd('git') failed due to: exit code(128) stderr: '{git}'"
        );
        check(&commands, "", &[], Some("download `https://github.com/a/b.git/`"));
        let wget = "wget: unable to resolve host address 'dl.example.org'";
        check(
            &failed("wget https://dl.example.org/a.pth"),
            "",
            &[wget],
            Some("download `https://dl.example.org/a.pth`"),
        );
        check("raised ValueError: no such face", "", &[wget], None);
        let uv =
            "  ╰─▶ Because rembg was not found in the cache and you require rembg, we can conclude that your";
        check(&failed("['uv', 'pip', 'install', 'rembg']"), "", &[uv], Some("install package `rembg`"));
    }

    #[test]
    fn process_ends_of_what_its_last_exception_tells_alone() {
        let check = |said: &str, expected: Option<&str>| {
            let said: Vec<String> = said.lines().map(str::to_owned).collect();
            let found = blocked_end(&said, false).map(|wanted| wanted.to_string());
            assert_eq!(found.as_deref(), expected, "{said:?}");
        };
        let manager = "FETCH ComfyRegistry Data: Max retries exceeded with url: /nodes (Temporary failure in name \
                       resolution)\nERROR: No matching distribution found for re-mbg";
        let traceback = "Traceback (most recent call last):\n  File \"main.py\", line 1\n    x()\n    ~^^";
        check(&format!("{manager}\nKilled"), None);
        check(&format!("{manager}\n{traceback}\nRuntimeError: no CUDA-capable device is detected"), None);
        check(
            &format!("{manager}\n{traceback}\nImportError: libGL.so.1: cannot open shared object file"),
            None,
        );
        let urllib = "urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>";
        check(&format!("{traceback}\n{urllib}\nStarting server"), None);
        let get = "get https://dl.example.org/a.pth";
        check(&format!("{get}\n{traceback}\n{urllib}\n\n"), Some("download `https://dl.example.org/a.pth`"));
        let module = "ModuleNotFoundError: No module named 're_mbg'";
        check(&format!("{manager}\n{traceback}\n{module}"), Some("install package `re-mbg`"));
    }

    #[test]
    fn other_exceptions_are_what_they_are() {
        check("raised ValueError: see https://example.org/docs", "", &[], None);
        check("raised RuntimeError: shapes do not match", "", &["https://example.org"], None);
    }
}
