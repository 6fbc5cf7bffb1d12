//! From which hosts code may come: ComfyUI, custom nodes, and Python packages, wherever these are named.
//!
//! What the package indexes have is allowed in any case: whoever names hosts means those that are not everybody's. Not
//! here: who follows an address; a repository's is judged once more as it is asked, with those of its submodules, and
//! where hosts are named no commit counts that this node did not fetch from one of them (`workspace/git/fetch.rs`).

use protocol::{
    BuildSource, CustomNode, EnvironmentLock, GitPin, LockedFile, Lockfile, PackagePin, Pin, WebUrl,
};

use super::{Policy, PolicyRefusal};
use crate::workspace::python::Indexes;

/// Something that is code, and the host that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeSource {
    /// What it is, in words.
    pub what: String,
    /// The host.
    pub host: String,
}

impl Policy {
    /// Judges all that a lockfile names.
    pub(super) fn judge_hosts(&self, lockfile: &Lockfile, indexes: &Indexes) -> Result<(), PolicyRefusal> {
        let comfyui = lockfile.comfyui.iter().map(|pin| ("ComfyUI".to_owned(), pin.clone()));
        let nodes = lockfile.custom_nodes.iter().filter_map(CustomNode::git);
        let nodes = nodes.map(|pin| (format!("custom node `{}`", pin.url), pin));
        // One that is allowed is enough: the others are passed over as the commit is fetched.
        let is_refused = |(_, pin): &(String, GitPin)| !pin.urls().any(|url| self.allows_host(&url.host()));
        match comfyui.chain(nodes).find(is_refused) {
            Some((what, pin)) => Err(self.refused(CodeSource { what, host: pin.url.host() })),
            None => self.judge_packages(lockfile.packages.iter().filter_map(pinned), indexes),
        }
    }

    /// Judges the files that an environment is installed from, wherever they are taken from in the end.
    pub fn judge_lock(&self, lock: &EnvironmentLock, indexes: &Indexes) -> Result<(), PolicyRefusal> {
        let hosts = |file: &LockedFile| file.urls.iter().map(WebUrl::host).collect::<Vec<_>>();
        let wheels = lock.wheels.iter().map(|wheel| (&wheel.name, hosts(&wheel.file)));
        let built = lock.built.iter().map(|built| match &built.source {
            BuildSource::File(file) => (&built.name, hosts(file)),
            BuildSource::Git(source) => (&built.name, vec![source.url.host()]),
        });
        let made = lock.built.iter().filter_map(|built| Some((&built.name, hosts(built.wheel.as_ref()?))));
        let sources = wheels.chain(built).chain(made).flat_map(|(name, hosts)| {
            hosts.into_iter().map(move |host| CodeSource { what: format!("package `{name}`"), host })
        });
        self.judge_packages(sources, indexes)
    }

    /// Judges packages.
    pub fn judge_packages(
        &self,
        sources: impl IntoIterator<Item = CodeSource>,
        indexes: &Indexes,
    ) -> Result<(), PolicyRefusal> {
        let is_allowed = |host: &str| self.allows_host(host) || indexes.has_host(host);
        match sources.into_iter().find(|source| !is_allowed(&source.host)) {
            Some(source) => Err(self.refused(source)),
            None => Ok(()),
        }
    }

    /// Whether repositories may come from this host.
    pub fn allows_host(&self, host: &str) -> bool {
        self.hosts.is_empty() || self.hosts.contains(host)
    }

    fn refused(&self, code: CodeSource) -> PolicyRefusal {
        PolicyRefusal::Host { code, allowed: self.hosts.iter().cloned().collect() }
    }
}

/// Where a pinned package comes from, if it says so.
fn pinned(package: &PackagePin) -> Option<CodeSource> {
    let host = match (&package.pin, &package.index) {
        (Pin::Git(url), _) => url.host(),
        (Pin::Url(url), _) | (Pin::Version(_), Some(url)) => url.host(),
        (Pin::Version(_), None) => return None,
    };
    Some(CodeSource { what: format!("package `{}`", package.name), host })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Which package is refused, and why, by a node that takes code from github.com alone.
    fn refused(judge: impl Fn(&Policy, &Indexes) -> Result<(), PolicyRefusal>) -> Option<CodeSource> {
        let indexes = Indexes { packages: "https://mirror.example/simple".to_owned(), ..Indexes::default() };
        assert_eq!(judge(&Policy::default(), &indexes), Ok(()), "any host is allowed where none is named");
        let narrow = Policy { hosts: ["github.com".to_owned()].into(), ..Policy::default() };
        match judge(&narrow, &indexes) {
            Ok(()) => None,
            Err(PolicyRefusal::Host { code, .. }) => Some(code),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn packages_come_from_allowed_hosts_and_from_the_indexes() {
        let check = |package: serde_json::Value, expected: Option<&str>| {
            let lockfile = json!({ "format": 1, "packages": [package] }).to_string();
            let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
            let found = refused(|policy, indexes| policy.judge_hosts(&lockfile, indexes));
            assert_eq!(found.map(|source| source.host).as_deref(), expected, "{lockfile:?}");
        };
        check(json!({ "name": "a", "version": "1" }), None);
        check(json!({ "name": "a", "url": "https://github.com/x/y/releases/a-1-py3-none-any.whl" }), None);
        check(json!({ "name": "a", "url": "https://evil.example/a.whl" }), Some("evil.example"));
        check(json!({ "name": "a", "git": "https://evil.example/a@1" }), Some("evil.example"));
        check(
            json!({ "name": "a", "version": "1", "index": "https://evil.example/simple" }),
            Some("evil.example"),
        );
        for index in ["https://download.pytorch.org/whl/cu124", "https://mirror.example/other"] {
            check(json!({ "name": "a", "version": "1", "index": index }), None);
        }
    }

    #[test]
    fn repository_is_refused_where_neither_it_nor_a_mirror_is_on_an_allowed_host() {
        let check = |urls: [&str; 2], expected: Option<&str>| {
            let commit = "1".repeat(40);
            let [url, mirror] = urls;
            let comfyui = json!({ "url": url, "commit": commit, "mirrors": [mirror] });
            let node = json!({ "from": "git", "url": url, "commit": commit, "mirrors": [mirror], "disabled": false });
            for part in
                [json!({ "format": 1, "comfyui": comfyui }), json!({ "format": 1, "custom_nodes": [node] })]
            {
                let lockfile = Lockfile::parse(part.to_string().as_bytes()).expect("a lockfile");
                let found = refused(|policy, indexes| policy.judge_hosts(&lockfile, indexes));
                assert_eq!(found.map(|source| source.host).as_deref(), expected, "{part}");
            }
        };
        let (allowed, evil) = ("https://github.com/a/b", "https://evil.example/a/b");
        check([allowed, evil], None);
        check([evil, allowed], None);
        check([evil, "https://other.example/a/b"], Some("evil.example"));
    }

    #[test]
    fn every_file_of_a_lock_is_judged_and_the_refusal_says_what_would_allow_it() {
        let check = |url: &str, expected: Option<&str>| {
            let file = json!({ "file_name": "a-1-py3-none-any.whl", "sha256": "1".repeat(64), "size": 1, "urls": [url] });
            let source =
                json!({ "file_name": "b-1.zip", "sha256": "2".repeat(64), "size": 1, "urls": [url] });
            let lock = |wheels: serde_json::Value, built: serde_json::Value| {
                let hash = protocol::BlobHash::of(b"");
                let lock = json!({ "format": 1, "environment": hash, "python": "3.11.7", "platform": "linux-x86_64",
                    "accelerator": "cpu", "equivalent": false, "wheels": wheels, "built": built });
                EnvironmentLock::parse(lock.to_string().as_bytes()).expect("a lock")
            };
            let wheels = lock(json!([{ "name": "a", "version": "1", "file": file }]), json!([]));
            let built = lock(json!([]), json!([{ "name": "b", "version": "1", "source": source }]));
            let commit = json!({ "url": url, "commit": "1".repeat(40) });
            let cloned = lock(json!([]), json!([{ "name": "b", "version": "1", "source": commit }]));
            let public = json!({ "url": "https://github.com/a/b", "commit": "1".repeat(40) });
            let made = json!([{ "name": "b", "version": "1", "source": public, "wheel": file }]);
            let made = lock(json!([]), made);
            for lock in [wheels, built, cloned, made] {
                let found = refused(|policy, indexes| policy.judge_lock(&lock, indexes));
                assert_eq!(found.map(|source| source.host).as_deref(), expected, "{url}");
            }
        };
        check("https://files.pythonhosted.org/packages/a-1-py3-none-any.whl", None);
        check("https://mirror.example/packages/a-1-py3-none-any.whl", None);
        check("https://download-r2.pytorch.org/whl/cpu/a-1-py3-none-any.whl", None);
        check("https://evil.example/a-1-py3-none-any.whl", Some("evil.example"));
        check("http://evil.example:8080/a-1-py3-none-any.whl", Some("evil.example"));

        let code = CodeSource { what: "package `a`".to_owned(), host: "evil.example".to_owned() };
        let told = PolicyRefusal::Host { code, allowed: vec!["github.com".to_owned()] }.to_string();
        let expected = "package `a` comes from `evil.example`, and this node takes code from `github.com` only: \
                        its owner can start it with `--allow-code-host evil.example`";
        assert_eq!(told, expected);
    }
}
