//! The texts of a lockfile, each a type that only holds what is safe to act on.
//!
//! Not here: what a lockfile says with them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::serde_as_text;

/// The longest of these texts, in bytes.
const MAX_TEXT: usize = 2048;

/// The endings of files that are code, also where nobody loads them as a model.
const CODE: [&str; 10] = [".py", ".pyc", ".pyd", ".pyi", ".pyw", ".so", ".dll", ".js", ".cu", ".sh"];

/// A text that is not what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseTextError {
    /// The text, cut to a length that can be shown.
    pub text: String,
    /// What was expected.
    pub expected: &'static str,
}

impl ParseTextError {
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(200).collect(), expected }
    }
}

/// Declares a text that is checked, and perhaps normalised, as it is read.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseTextError;

            fn from_str(text: &str) -> Result<Self, ParseTextError> {
                let check: fn(&str) -> Result<String, &'static str> = $check;
                check(text).map(Self).map_err(|expected| ParseTextError::new(text, expected))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseTextError;

            fn try_from(text: String) -> Result<Self, ParseTextError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text!(
    /// A name or version: letters, digits and `. _ + ! -`, not beginning with a sign, so that it is never
    /// taken for an option or a path.
    Token,
    |text| {
        let expected = "a name or version: letters, digits and `._+!-`, at most 128";
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._+!-".contains(&byte);
        let begins_well = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_');
        let valid = begins_well && text.len() <= 128 && text.bytes().all(inner);
        if valid { Ok(text.to_owned()) } else { Err(expected) }
    }
);

checked_text!(
    /// The full hash of a git commit, in lower-case hex.
    GitCommit,
    |text| {
        let hex = text.len() == 40 || text.len() == 64;
        let hex = hex && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex { Ok(text.to_ascii_lowercase()) } else { Err("a commit: 40 hex digits") }
    }
);

checked_text!(
    /// The path of a model in a ComfyUI folder, with `/` between its parts: below `models/`, or, of what custom nodes
    /// fetch at run time, below `custom_nodes/` or the `home/` of ComfyUI's process, where no file can be code.
    ModelPath,
    |text| {
        let is_of_nodes = text.starts_with("custom_nodes/") || text.starts_with("home/");
        let inside = text.starts_with("models/") || (is_of_nodes && !is_code(text));
        match inside && relative_path(text).is_ok() {
            true => Ok(text.to_owned()),
            false => Err("a path below `models/`, or of a file without code below `custom_nodes/` or `home/`"),
        }
    }
);

checked_text!(
    /// The path of a folder below another one, with `/` between its parts.
    FolderPath,
    |text| match relative_path(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(_) => Err("the path of a folder below another one"),
    }
);

checked_text!(
    /// An address on a public host over https, without a user name in it. Spaces are written `%20`.
    HttpsUrl,
    |text| {
        let rest = text.strip_prefix("https://").ok_or("an https URL")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let port = authority[host.len()..].trim_start_matches(':');
        if authority.contains('@') {
            return Err("an https URL without a user name");
        }
        if !is_public_host(host) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("an https URL of a public host by its name");
        }
        if text.len() > MAX_TEXT || path.contains(|c: char| c.is_control() || c == '\\') {
            return Err("an https URL of harmless characters, at most 2048");
        }
        Ok(text.replace(' ', "%20"))
    }
);

checked_text!(
    /// The name of a file without folders: letters, digits and `. _ + ! -`, not beginning with a sign.
    FileName,
    |text| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._+!-".contains(&byte);
        let begins_well = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_');
        let valid = begins_well && text.len() <= 255 && text.bytes().all(inner);
        if valid { Ok(text.to_owned()) } else { Err("a file name: letters, digits and `._+!-`, at most 255") }
    }
);

checked_text!(
    /// An address over http or https, of any host, without a user name in it. Whoever follows it decides
    /// which hosts it asks.
    WebUrl,
    |text| {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let rest = rest.ok_or("an http or https URL")?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err("a URL of a host, without a user name");
        }
        let harmless = |c: char| !c.is_control() && !c.is_whitespace() && c != '\\';
        if text.len() > MAX_TEXT || !text.chars().all(harmless) {
            return Err("a URL of harmless characters, at most 2048");
        }
        Ok(text.to_owned())
    }
);

checked_text!(
    /// The address of a git repository: over http or https, or an absolute path as `file:///…`. SSH addresses
    /// of known forges are read as https ones. Whoever follows it decides which it asks.
    GitUrl,
    |text| {
        if text.starts_with("https://") || text.starts_with("http://") {
            return text.replace(' ', "%20").parse::<WebUrl>().map(|url| url.0).map_err(|error| error.expected);
        }
        if let Some(path) = text.strip_prefix("file:///") {
            let inside = path.is_empty() || relative_path(path.trim_end_matches('/')).is_ok();
            return if inside { Ok(text.to_owned()) } else { Err("a path without `..` after `file:///`") };
        }
        https_of_ssh(text).ok_or(
            "an https address of a git repository: SSH addresses are read for github.com, gitlab.com, \
             bitbucket.org, codeberg.org and huggingface.co; record the https address of others",
        )
    }
);

/// Whether a file of this path is code by its ending.
pub fn is_code(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    CODE.iter().any(|ending| path.ends_with(ending))
}

impl From<HttpsUrl> for GitUrl {
    fn from(url: HttpsUrl) -> Self {
        Self(url.0)
    }
}

impl GitUrl {
    /// The host, in lower case and without a port; `localhost` for a path on this machine.
    pub fn host(&self) -> String {
        match self.0.split_once("://") {
            Some(("file", _)) | None => "localhost".to_owned(),
            Some((_, rest)) => host(rest),
        }
    }

    /// Whether it is an https address of a host that anybody can reach by its name.
    pub fn is_public(&self) -> bool {
        self.0.parse::<HttpsUrl>().is_ok()
    }

    /// The folder that it is checked out into, as `git clone` names it.
    pub fn folder(&self) -> &str {
        let last = self.0.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        last.strip_suffix(".git").unwrap_or(last)
    }

    /// Whether both are one repository, however its address is written.
    pub fn is_same(&self, other: &Self) -> bool {
        self.bare() == other.bare()
    }

    /// The address without what may end it or not.
    pub fn bare(&self) -> &str {
        let text = self.0.trim_end_matches('/');
        text.strip_suffix(".git").unwrap_or(text)
    }
}

/// The https address of `git@HOST:PATH` or `ssh://git@HOST/PATH`, for forges that have both.
fn https_of_ssh(text: &str) -> Option<String> {
    const FORGES: [&str; 5] = ["github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "huggingface.co"];
    let rest = text.strip_prefix("ssh://");
    let rest = rest.unwrap_or(text).strip_prefix("git@")?;
    let (host, path) = rest.split_once(['/', ':'])?;
    let harmless = relative_path(path).is_ok() && !path.contains(' ') && text.len() <= MAX_TEXT;
    (FORGES.contains(&host) && harmless).then(|| format!("https://{host}/{path}"))
}

impl HttpsUrl {
    /// The host, in lower case and without a port.
    pub fn host(&self) -> String {
        host(&self.0["https://".len()..])
    }
}

impl WebUrl {
    /// The host, in lower case and without a port.
    pub fn host(&self) -> String {
        host(self.0.split_once("://").map_or("", |(_, rest)| rest))
    }
}

/// The host at the beginning of what follows a URL's scheme.
fn host(rest: &str) -> String {
    rest.split(['/', '?', '#', ':']).next().unwrap_or_default().to_ascii_lowercase()
}

/// A name with a dot that is no address and none that only a home or office network knows.
fn is_public_host(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let last = host.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    host.contains('.')
        && host.split('.').all(label)
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !last.starts_with("0x")
        && !["local", "localhost", "internal", "lan", "home", "arpa"].contains(&last.as_str())
}

/// Checks a path of a file below some folder; says what is wrong with it.
pub(crate) fn relative_path(path: &str) -> Result<(), &'static str> {
    let bytes = path.as_bytes();
    if path.is_empty() || path.len() > 512 {
        return Err("is empty or longer than 512 bytes");
    }
    if path.chars().any(char::is_control) {
        return Err("has control characters");
    }
    if path.contains('\\') {
        return Err("has a backslash");
    }
    if path.starts_with('/') {
        return Err("is absolute");
    }
    if bytes.get(1) == Some(&b':') && bytes[0].is_ascii_alphabetic() {
        return Err("begins with a drive");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("has `..`, which leads outside");
    }
    if path.split('/').any(|part| part.is_empty() || part == ".") {
        return Err("has an empty part");
    }
    Ok(())
}

/// Declares a name of 32 bytes that is written in hex.
macro_rules! hex_name {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl FromStr for $name {
            type Err = ParseTextError;

            fn from_str(text: &str) -> Result<Self, ParseTextError> {
                let mut bytes = [0; 32];
                let wrong = |_| ParseTextError::new(text, $expected);
                hex::decode_to_slice(text, &mut bytes).map_err(wrong)?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        serde_as_text!($name);
    };
}

hex_name!(
    /// The SHA-256 of a file.
    Sha256,
    "a SHA-256: 64 hex digits"
);
hex_name!(
    /// The ed25519 public key of someone who publishes workflows.
    PublisherKey,
    "a publisher's key: 64 hex digits"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_urls_of_public_hosts_are_taken() {
        let good = [
            "https://huggingface.co/a/resolve/b/x (1).safetensors?download=true",
            "https://civitai.com/api/download/models/123",
            "https://github.com:443/a/b.git",
            "https://example.org",
        ];
        for text in good {
            assert!(text.parse::<HttpsUrl>().is_ok(), "{text}");
        }
        let bad = [
            "",
            "http://example.org/x",
            "file:///etc/passwd",
            "ext::sh -c id",
            "https://",
            "https://huggingface.co@evil.example/x",
            "https://localhost/x",
            "https://127.0.0.1/x",
            "https://0x7f.0.0.0x1/x",
            "https://2130706433/x",
            "https://[::1]/x",
            "https://printer.local/x",
            "https://exa mple.org/x",
            "https://example.org/x\ny",
            "https://example.org:99x/",
            "https://example.org\\@evil.example/",
        ];
        for text in bad {
            assert!(text.parse::<HttpsUrl>().is_err(), "{text}");
        }
        let url: HttpsUrl = good[0].parse().unwrap();
        assert!(url.as_str().contains("x%20(1)"));
        assert_eq!("https://HuggingFace.co:443/x".parse::<HttpsUrl>().unwrap().host(), "huggingface.co");
    }

    #[test]
    fn paths_of_models_stay_below_models() {
        assert!("models/checkpoints/a b.safetensors".parse::<ModelPath>().is_ok());
        let bad = [
            "",
            "models",
            "models/",
            "/models/x",
            "models/../x",
            "../models/x",
            "models//x",
            "models/./x",
            "custom_nodes/x.py",
            "models\\x",
            "models/x\0",
            "C:/models/x",
        ];
        for text in bad {
            assert!(text.parse::<ModelPath>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn tokens_are_never_options_or_paths() {
        for text in ["torch", "2.6.0+cu124", "1!2.0", "_x", "websocket_image_save.py"] {
            assert!(text.parse::<Token>().is_ok(), "{text}");
        }
        for text in ["", "-r", "--x", "a b", "a/b", "..", ".x", "a;b", &"x".repeat(129)] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }

    #[test]
    fn file_names_lead_nowhere_and_web_urls_name_no_user() {
        for text in ["torch-2.6.0+cu124-cp311-cp311-linux_x86_64.whl", "a-1.tar.gz"] {
            assert!(text.parse::<FileName>().is_ok(), "{text}");
        }
        for text in ["", "..", "-x.whl", "a/b.whl", "a b.whl", &"x".repeat(256)] {
            assert!(text.parse::<FileName>().is_err(), "{text}");
        }
        for text in ["https://files.example.org/a.whl", "http://127.0.0.1:8080/simple"] {
            assert!(text.parse::<WebUrl>().is_ok(), "{text}");
        }
        for text in ["", "https://", "file:///x", "https://me@example.org/x", "https://example.org/a b"] {
            assert!(text.parse::<WebUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn git_addresses_are_https_http_or_paths_and_ssh_of_forges_becomes_https() {
        let check = |text: &str, expected: Option<&str>| {
            let url = text.parse::<GitUrl>();
            assert_eq!(url.as_ref().ok().map(GitUrl::as_str), expected, "{text}: {url:?}");
        };
        check("https://github.com/x/y.git", Some("https://github.com/x/y.git"));
        check("http://127.0.0.1:8080/y", Some("http://127.0.0.1:8080/y"));
        check("file:///srv/git/y", Some("file:///srv/git/y"));
        check("git@github.com:x/y.git", Some("https://github.com/x/y.git"));
        check("ssh://git@gitlab.com/x/y", Some("https://gitlab.com/x/y"));
        for text in [
            "git@git.example.org:x/y",
            "ext::sh -c x",
            "file:///srv/../etc",
            "/srv/y",
            "-u",
            "ssh://x@github.com/a",
        ] {
            check(text, None);
        }
        assert_eq!("HTTPS".parse::<GitUrl>().ok(), None);
        let url: GitUrl = "https://GitHub.com:443/x".parse().unwrap();
        assert_eq!((url.host().as_str(), url.is_public()), ("github.com", true));
        assert!(!"http://127.0.0.1/y".parse::<GitUrl>().unwrap().is_public());
    }

    #[test]
    fn commits_are_whole_hashes() {
        let commit: GitCommit = "CA457F7BA1FF33BD0D724CD7324131509EFCF3EC".parse().unwrap();
        assert_eq!(commit.as_str(), "ca457f7ba1ff33bd0d724cd7324131509efcf3ec");
        for text in ["", "main", "ca457f7", "--upload-pack=touch-x-aaaaaaaaaaaaaaaaaaa"] {
            assert!(text.parse::<GitCommit>().is_err(), "{text}");
        }
    }
}
