//! Package indexes, asked for the files of each recorded version: their SHA-256, and which index has them.
//!
//! They are those of whoever packs, so they may be an office's own, with a user name in their address, which is never
//! recorded. Not here: which of the files a machine installs.

mod page;
mod pip;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use futures::{StreamExt, stream};
use protocol::{
    HttpsUrl, Lockfile, PackagePin, Pin, Sha256, Token, error_chain, is_torch_family, normalized,
};
use reqwest::header::ACCEPT;
use reqwest::{Client, StatusCode, Url};

pub use pip::pip_indexes;

use super::SILENCE;
use crate::workspace::python::{PACKAGE_INDEX, TORCH_INDEX};
use page::{File, files};

/// How many packages are asked about at once.
const AT_ONCE: usize = 8;
/// The largest page that is read, in bytes: those of packages with a build for each night have several MB.
const MAX_PAGE: usize = 64 << 20;
/// Pages in HTML, which every index has.
const HTML: &str = "application/vnd.pypi.simple.v1+html, text/html;q=0.9";
/// It answers so about packages that it does not have.
const FORBIDS_WHAT_IS_MISSING: &str = "download.pytorch.org";

/// The address of an index. Its user name and password are sent to it, and shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct IndexUrl(Url);

/// A text that is no address of an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a package index has an http or https URL, such as https://pypi.org/simple")]
pub struct ParseIndexUrlError;

impl FromStr for IndexUrl {
    type Err = ParseIndexUrlError;

    fn from_str(text: &str) -> Result<Self, ParseIndexUrlError> {
        let url = Url::parse(text.trim_end_matches('/')).map_err(|_| ParseIndexUrlError)?;
        let is_web = ["http", "https"].contains(&url.scheme()) && url.query().is_none();
        if is_web { Ok(Self(url)) } else { Err(ParseIndexUrlError) }
    }
}

impl fmt::Display for IndexUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        f.write_str(url.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for IndexUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl IndexUrl {
    /// One below this one.
    fn below(&self, name: &str) -> Self {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(name);
        }
        Self(url)
    }
}

/// Which indexes are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageIndexes {
    /// That of everything. Defaults to [`PACKAGE_INDEX`].
    pub main: IndexUrl,
    /// Further ones, which go before it. Defaults to none.
    pub extra: Vec<IndexUrl>,
    /// Below which each build of torch has one. Defaults to [`TORCH_INDEX`].
    pub torch: IndexUrl,
}

impl Default for PackageIndexes {
    fn default() -> Self {
        let url = |text: &str| text.parse().expect("the constant is a URL");
        Self { main: url(PACKAGE_INDEX), extra: Vec::new(), torch: url(TORCH_INDEX) }
    }
}

/// A package whose files are not known, so that its version alone is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The package.
    pub package: Token,
    /// The version that is installed.
    pub version: Token,
    /// Why, in words.
    pub reason: String,
}

/// Asks for the files of each package that is pinned to a version, and writes down their hashes, and the index that has
/// them where it is not the usual one. `installed` are the hashes of files that were installed from this machine.
pub async fn look_up_packages(
    lockfile: &mut Lockfile,
    indexes: &PackageIndexes,
    installed: &BTreeMap<Token, Sha256>,
    notes: &mut Vec<String>,
) -> Result<Vec<Unresolved>, reqwest::Error> {
    let http = Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE);
    let asker = Asker { http: http.build()?, indexes, away: Mutex::default() };
    let find = |package: &PackagePin| {
        let (package, installed) = (package.clone(), installed.get(&package.name).copied());
        let asker = &asker;
        async move {
            let Pin::Version(version) = &package.pin else { return Ok(None) };
            let found = asker.find(&package, version.as_str(), installed).await;
            let (name, version) = (package.name.clone(), version.clone());
            found.map(Some).map_err(|reason| Unresolved { package: name, version, reason })
        }
    };
    let questions: Vec<_> = lockfile.packages.iter().map(find).collect();
    let answers: Vec<_> = stream::iter(questions).buffered(AT_ONCE).collect().await;
    let (mut unresolved, mut unnamed) = (Vec::new(), BTreeSet::new());
    for (package, answer) in lockfile.packages.iter_mut().zip(answers) {
        match answer {
            Ok(Some(Found { hashes, index })) => {
                package.hashes = hashes.into_iter().collect();
                match index.map(|index| index.to_string().parse::<HttpsUrl>().map_err(|_| index)) {
                    Some(Ok(index)) => package.index = Some(index),
                    Some(Err(index)) => drop(unnamed.insert(index.to_string())),
                    None => {}
                }
            }
            Ok(None) => {}
            Err(why) => unresolved.push(why),
        }
    }
    notes.extend(unnamed.into_iter().map(|index| {
        format!("packages of `{index}`, which is no public https address, are asked of the index that each node has")
    }));
    Ok(unresolved)
}

/// The files of a version.
struct Found {
    hashes: BTreeSet<Sha256>,
    /// The index that has them, if nodes do not know by themselves.
    index: Option<IndexUrl>,
}

struct Asker<'a> {
    http: Client,
    indexes: &'a PackageIndexes,
    /// The indexes that cannot be reached, and why: they are asked once.
    away: Mutex<BTreeMap<String, String>>,
}

impl Asker<'_> {
    /// Where the files of a version are, or why that is not known.
    async fn find(
        &self,
        package: &PackagePin,
        version: &str,
        installed: Option<Sha256>,
    ) -> Result<Found, String> {
        let name = normalized(package.name.as_str());
        let mut having = Vec::new();
        let candidates = self.candidates(package, version);
        for index in &candidates {
            let hashes: BTreeSet<Sha256> = self.hashes(index, &name, version).await?;
            if !hashes.is_empty() {
                having.push((index, hashes));
            }
        }
        if let Some(installed) = installed {
            having.retain(|(_, hashes)| hashes.contains(&installed));
        }
        let Some((index, mut hashes)) = having.first().cloned() else {
            let asked: Vec<String> = candidates.iter().map(|index| format!("`{index}`")).collect();
            let what = match installed {
                Some(sha256) => format!("the file it was installed from, with SHA-256 `{sha256}`, is not in"),
                None => "this version is not in".to_owned(),
            };
            return Err(format!("{what} {}", asked.join(" or ")));
        };
        let mut index = index.clone();
        // A mirror of the index of everything need not be named, and may have fewer files.
        let main = having.last().filter(|(last, _)| **last == self.indexes.main);
        if let Some((main, more)) = main.filter(|(_, more)| !more.is_disjoint(&hashes)) {
            hashes.extend(more);
            index.clone_from(main);
        }
        let is_of_torch =
            is_torch_family(&name) && index.to_string().starts_with(&self.indexes.torch.to_string());
        let is_known = is_of_torch || index.to_string() == PACKAGE_INDEX;
        Ok(Found { hashes, index: (!is_known).then_some(index) })
    }

    /// The indexes that may have a version, in the order in which they count: as with uv, what is in a further one is
    /// not taken from the one of everything, where anybody may publish under the same name.
    fn candidates(&self, package: &PackagePin, version: &str) -> Vec<IndexUrl> {
        let PackageIndexes { main, extra, torch } = self.indexes;
        let build = version.split_once('+').map(|(_, build)| build);
        let own = match (build, &package.index) {
            (Some(build), _) if is_torch_family(package.name.as_str()) => Some(torch.below(build)),
            (_, Some(index)) => index.as_str().parse().ok(),
            _ => None,
        };
        let mut candidates: Vec<IndexUrl> = own.into_iter().chain(extra.iter().cloned()).collect();
        candidates.retain(|index| index != main);
        candidates.push(main.clone());
        candidates
    }

    /// The hashes of the files that an index has of a version.
    async fn hashes(&self, index: &IndexUrl, name: &str, version: &str) -> Result<BTreeSet<Sha256>, String> {
        let known = self.away.lock().expect("nothing panics under it").get(&index.to_string()).cloned();
        if let Some(reason) = known {
            return Err(reason);
        }
        let told = |reason: String| format!("`{index}` does not tell: {reason}");
        let page = match self.page(index, name).await {
            Ok(page) => page.unwrap_or_default(),
            Err(error) => {
                let wants_nothing = [401, 403, 429];
                let is_away = error.is_connect()
                    || error.is_timeout()
                    || error.status().is_some_and(|status| wants_nothing.contains(&status.as_u16()));
                let reason = told(error_chain(&error.without_url()));
                if is_away {
                    self.away
                        .lock()
                        .expect("nothing panics under it")
                        .insert(index.to_string(), reason.clone());
                }
                return Err(reason);
            }
        };
        let of_version: Vec<File> =
            files(&page).into_iter().filter(|file| file.is_of(name, version)).collect();
        let hashes: BTreeSet<Sha256> = of_version.iter().filter_map(|file| file.sha256).collect();
        match hashes.is_empty() && !of_version.is_empty() {
            true => Err(told("it names no SHA-256 of the files".to_owned())),
            false => Ok(hashes),
        }
    }

    async fn page(&self, index: &IndexUrl, name: &str) -> Result<Option<String>, reqwest::Error> {
        let mut url = index.below(name).0;
        url.set_path(&format!("{}/", url.path()));
        let mut response = self.http.get(url).header(ACCEPT, HTML).send().await?;
        let forbids_missing = index.0.host_str() == Some(FORBIDS_WHAT_IS_MISSING);
        if response.status() == StatusCode::NOT_FOUND
            || (response.status() == StatusCode::FORBIDDEN && forbids_missing)
        {
            return Ok(None);
        }
        response.error_for_status_ref()?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_PAGE {
                break;
            }
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}
