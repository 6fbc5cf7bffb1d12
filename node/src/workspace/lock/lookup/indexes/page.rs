//! The page of one package in an index (PEP 503): its files, and their hashes.
//!
//! Not here: who is asked for it.

use percent_encoding::percent_decode_str;
use protocol::{Sha256, normalized};

/// How the names of files end that a package can be installed from.
const ENDINGS: [&str; 4] = [".whl", ".tar.gz", ".zip", ".tar.bz2"];

/// A file that an index has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Its name.
    pub(super) name: String,
    /// Its SHA-256, where the page says it.
    pub(super) sha256: Option<Sha256>,
}

/// The files that a page links to.
pub(super) fn files(page: &str) -> Vec<File> {
    page.split("<a").skip(1).filter_map(|rest| file(address(rest.split('>').next()?)?)).collect()
}

/// Where a link leads, of what stands in its tag.
fn address(tag: &str) -> Option<&str> {
    let rest = tag.split_once("href")?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = rest.chars().next().filter(|first| ['"', '\''].contains(first))?;
    rest[1..].split(quote).next()
}

fn file(address: &str) -> Option<File> {
    let address = address.replace("&amp;", "&");
    let (path, fragment) = address.split_once('#').unwrap_or((&address, ""));
    let name = path.split('?').next()?.rsplit('/').next()?;
    let name = percent_decode_str(name).decode_utf8().ok()?.into_owned();
    let sha256 = fragment.split('&').find_map(|part| part.strip_prefix("sha256="));
    let sha256 = sha256.and_then(|hash| hash.to_ascii_lowercase().parse().ok());
    ENDINGS.iter().any(|ending| name.ends_with(ending)).then_some(File { name, sha256 })
}

impl File {
    /// Whether it is of this version of this package, whose name is normalized.
    pub(super) fn is_of(&self, package: &str, version: &str) -> bool {
        let Some(stem) = ENDINGS.iter().find_map(|ending| self.name.strip_suffix(ending)) else {
            return false;
        };
        // The name of a wheel has no `-` in its parts; that of a source may have some in the package's name.
        let parts = |at: usize| (&stem[..at], &stem[at + 1..]);
        let is_wheel = self.name.ends_with(".whl");
        let mut splits = stem.match_indices('-').map(|(at, _)| parts(at));
        splits.any(|(name, rest)| {
            let of = if is_wheel { rest.split('-').next().unwrap_or_default() } else { rest };
            normalized(name) == package && comparable(of) == comparable(version)
        })
    }
}

/// A version so that equal ones are equal texts: `1.0`, `1.0.0` and `v1` are one.
fn comparable(version: &str) -> String {
    let version = version.to_ascii_lowercase().replace('_', "+");
    let (release, local) = version.split_once('+').unwrap_or((&version, ""));
    let release = release.trim_start_matches('v');
    let mut release = release.to_owned();
    while release.ends_with(".0") {
        release.truncate(release.len() - 2);
    }
    format!("{release}+{}", local.replace(['-', '+'], "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_page_have_their_names_and_hashes() {
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let page = format!(
            "<html><body><a href=\"../../files/a_b-1.0-py3-none-any.whl#sha256={one}\" data-requires-python=\"&gt;=3\">x</a>\n\
             <a data-yanked='' href='https://x.example/torch-2.6.0%2Bcu124-cp311-cp311-linux_x86_64.whl#sha256={two}'>x</a>\
             <a href=\"a.b-1.0.tar.gz#md5=0\">x</a><a href=\"a-b-1.exe\">x</a><a name=top>x</a></body></html>"
        );
        let file = |name: &str, sha256: Option<&str>| File {
            name: name.to_owned(),
            sha256: sha256.map(|hash| hash.parse().expect("a hash")),
        };
        let expected = [
            file("a_b-1.0-py3-none-any.whl", Some(&one)),
            file("torch-2.6.0+cu124-cp311-cp311-linux_x86_64.whl", Some(&two)),
            file("a.b-1.0.tar.gz", None),
        ];
        assert_eq!(files(&page), expected);
    }

    #[test]
    fn file_is_of_one_version_however_that_is_written() {
        let check = |name: &str, package: &str, version: &str, expected: bool| {
            let file = File { name: name.to_owned(), sha256: None };
            assert_eq!(file.is_of(package, version), expected, "{name}, {version}");
        };
        check("a_b-1.0-py3-none-any.whl", "a-b", "1.0.0", true);
        check("a_b-1.0-1-py3-none-any.whl", "a-b", "1.0", true);
        check("a_b-1.0-py3-none-any.whl", "a-b", "1.0.1", false);
        check("a-b-10.tar.gz", "a-b", "10", true);
        check("a-b-10.tar.gz", "a-b", "1", false);
        check("a-b-1.tar.gz", "a", "1", false);
        check("torch-2.6.0+cpu-cp311-cp311-linux_x86_64.whl", "torch", "2.6.0+cpu", true);
        check("torch-2.6.0+cpu-cp311-cp311-linux_x86_64.whl", "torch", "2.6.0", false);
    }
}
