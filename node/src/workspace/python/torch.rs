//! Where packages come from, and which build of the torch family a machine gets.
//!
//! Pure, and the one place that decides it: what a plan shows is what is installed.

use protocol::{Accelerator, PackagePin, Pin};

/// Where packages come from unless they say otherwise.
pub const PACKAGE_INDEX: &str = "https://pypi.org/simple";
/// Where each build of torch has an index of its own.
pub const TORCH_INDEX: &str = "https://download.pytorch.org/whl";
/// The CUDA builds that torch was ever published with since its version 2.0, oldest first.
const CUDA_BUILDS: [(u16, u16); 9] =
    [(11, 7), (11, 8), (12, 1), (12, 4), (12, 6), (12, 8), (12, 9), (13, 0), (13, 2)];
/// The same for ROCm.
const ROCM_BUILDS: [&str; 11] = [
    "rocm5.6",
    "rocm5.7",
    "rocm6.0",
    "rocm6.1",
    "rocm6.2",
    "rocm6.2.4",
    "rocm6.3",
    "rocm6.4",
    "rocm7.0",
    "rocm7.1",
    "rocm7.2",
];

/// The package indexes that a node asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexes {
    /// Where packages come from. Defaults to [`PACKAGE_INDEX`].
    pub packages: String,
    /// Below which each build of torch has an index; without one, torch comes from `packages` as it is
    /// there. Defaults to [`TORCH_INDEX`].
    pub torch: Option<String>,
}

impl Default for Indexes {
    fn default() -> Self {
        Self { packages: PACKAGE_INDEX.to_owned(), torch: Some(TORCH_INDEX.to_owned()) }
    }
}

/// Where the public indexes keep their files.
const FILE_HOSTS: [&str; 2] = ["files.pythonhosted.org", "download-r2.pytorch.org"];

impl Indexes {
    /// Whether packages come from this host unless they say otherwise: that of one of these indexes, or of a public one,
    /// from which another node may have had them.
    pub(crate) fn has_host(&self, host: &str) -> bool {
        let indexes = [self.packages.as_str(), PACKAGE_INDEX, TORCH_INDEX];
        let indexes = indexes.into_iter().chain(self.torch.as_deref());
        let is_host = |index: &str| {
            // The owner's own may have a name and a password in it.
            let index = without_user(index);
            let authority = index.split("://").nth(1).unwrap_or_default().split('/').next();
            let named = authority.unwrap_or_default().split(':').next();
            named.is_some_and(|named| named.eq_ignore_ascii_case(host))
        };
        FILE_HOSTS.contains(&host) || indexes.into_iter().any(is_host)
    }

    /// A text that has these addresses, without the owner's name and password in them.
    pub(super) fn nameless(&self, text: &str) -> String {
        let own = self.torch.iter().chain([&self.packages]);
        own.fold(text.to_owned(), |text, address| text.replace(address.as_str(), &without_user(address)))
    }

    /// Where a pinned package of the torch family is asked for in this build (empty: the plain one): where it was recorded,
    /// if that is the recorded build.
    pub(crate) fn of_pin(&self, package: &PackagePin, build: &str) -> Option<String> {
        let Pin::Version(version) = &package.pin else { return None };
        let (release, recorded) = version.as_str().split_once('+').unwrap_or((version.as_str(), ""));
        let index = package.index.as_ref().filter(|_| recorded == build);
        index.map(ToString::to_string).or_else(|| self.of_build(release, build))
    }

    /// The index of a build of this release; `None` for that of everything.
    pub(super) fn of_build(&self, release: &str, build: &str) -> Option<String> {
        match build {
            // Those of a night are nowhere else, and what is not for Linux is beside the build for processors.
            "" if is_nightly(release) => Some(format!("{}/cpu", self.of_builds(release)?)),
            "" => None,
            build => Some(format!("{}/{build}", self.of_builds(release)?)),
        }
    }

    /// Below which each build of this release has its index.
    pub(crate) fn of_builds(&self, release: &str) -> Option<String> {
        let nightly = if is_nightly(release) { "/nightly" } else { "" };
        Some(format!("{}{nightly}", self.torch.as_ref()?.trim_end_matches('/')))
    }

    /// The builds that are tried in order for what was recorded (`cu124`; empty for the plain one).
    pub(super) fn builds(&self, recorded: &str, accelerator: Accelerator) -> Vec<String> {
        if self.torch.is_none() {
            return vec![String::new()];
        }
        match build_for(recorded, accelerator) {
            // Some platforms have only the plain one.
            Some(build) if accelerator == Accelerator::Cpu => vec![build, String::new()],
            Some(build) => vec![build],
            None => candidates(accelerator),
        }
    }
}

fn is_nightly(release: &str) -> bool {
    release.contains("dev")
}

/// An address without the name and the password in it.
pub(super) fn without_user(address: &str) -> String {
    let start = address.find("://").map_or(0, |scheme| scheme + 3);
    let (scheme, rest) = address.split_at(start);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    format!("{scheme}{}{path}", authority.rsplit('@').next().unwrap_or_default())
}

/// Which build of torch such a machine gets, as its local version says (`cu124`; empty for the plain one of
/// the package index). The recorded one where the machine can run it; `None` where only torch's index
/// can tell.
pub(crate) fn build_for(recorded: &str, accelerator: Accelerator) -> Option<String> {
    let cuda = |build: &str| -> Option<(u16, u16)> {
        let digits = build.strip_prefix("cu")?;
        let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match accelerator {
        Accelerator::Cpu => Some("cpu".to_owned()),
        Accelerator::Mps => Some(String::new()),
        Accelerator::Rocm => recorded.starts_with("rocm").then(|| recorded.to_owned()),
        Accelerator::Cuda { major, minor } => {
            cuda(recorded).filter(|needed| *needed <= (major, minor)).map(|_| recorded.to_owned())
        }
    }
}

/// The builds that such a machine may run, the best first. A driver runs what was made for its own CUDA or
/// an older one, and also a later one of the same major version; the plain build is the last resort.
fn candidates(accelerator: Accelerator) -> Vec<String> {
    let mut builds: Vec<String> = match accelerator {
        Accelerator::Cuda { major, minor } => {
            let own = (major, minor);
            let older = CUDA_BUILDS.iter().rev().filter(|build| **build <= own);
            let later = CUDA_BUILDS.iter().filter(|build| **build > own && build.0 == major);
            let same = older.clone().filter(|build| build.0 == major);
            let before = older.filter(|build| build.0 < major);
            same.chain(later).chain(before).map(|(major, minor)| format!("cu{major}{minor}")).collect()
        }
        Accelerator::Rocm => ROCM_BUILDS.iter().rev().map(|build| (*build).to_owned()).collect(),
        Accelerator::Mps | Accelerator::Cpu => Vec::new(),
    };
    builds.push(String::new());
    builds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_build_of_torch_is_kept_where_the_machine_can_run_it() {
        let check = |recorded: &str, accelerator: &str, expected: Option<&str>| {
            let accelerator = accelerator.parse().expect("an accelerator");
            assert_eq!(build_for(recorded, accelerator).as_deref(), expected, "{recorded} on {accelerator}");
        };
        check("cu124", "cuda12.4", Some("cu124"));
        check("cu124", "cuda13.0", Some("cu124"));
        check("cu124", "cuda12.1", None);
        check("", "cuda12.4", None);
        check("cu124", "cpu", Some("cpu"));
        check("cu124", "mps", Some(""));
        check("cu124", "rocm", None);
        check("rocm6.2", "rocm", Some("rocm6.2"));
        check("cu", "cuda12.4", None);
    }

    #[test]
    fn other_builds_are_tried_from_the_driver_down() {
        let indexes = Indexes::default();
        let check = |recorded: &str, accelerator: &str, expected: &[&str]| {
            let accelerator = accelerator.parse().expect("an accelerator");
            assert_eq!(indexes.builds(recorded, accelerator), expected, "{recorded} on {accelerator}");
        };
        check("cu124", "cuda12.4", &["cu124"]);
        check("", "cuda12.6", &["cu126", "cu124", "cu121", "cu128", "cu129", "cu118", "cu117", ""]);
        check("cu128", "cpu", &["cpu", ""]);
        check("", "cpu", &["cpu", ""]);
        let own = Indexes { torch: None, ..Indexes::default() };
        assert_eq!(own.builds("cu124", Accelerator::Cpu), [""]);
    }

    #[test]
    fn hosts_of_indexes_are_those_of_the_owner_and_the_public_ones() {
        let own = Indexes {
            packages: "https://me:secret@Mirror.example:8443/simple".to_owned(),
            torch: Some("http://torch.example/whl".to_owned()),
        };
        for host in ["mirror.example", "torch.example", "pypi.org", "files.pythonhosted.org"] {
            assert!(own.has_host(host), "{host}");
        }
        for host in ["", "me", "example", "evil.example"] {
            assert!(!own.has_host(host), "{host}");
        }
    }

    #[test]
    fn names_and_passwords_are_taken_out_of_addresses() {
        let check = |address: &str, expected: &str| assert_eq!(without_user(address), expected);
        check(
            "https://me:se@cret@mirror.example:8443/a@b/simple?c@d",
            "https://mirror.example:8443/a@b/simple?c@d",
        );
        check("me:secret@proxy.example:3128", "proxy.example:3128");
        check("http://me@proxy.example", "http://proxy.example");
        let own =
            Indexes { torch: Some("https://me:secret@torch.example/whl".to_owned()), ..Indexes::default() };
        let question = "url = 'https://me:secret@torch.example/whl/cu124'";
        assert_eq!(own.nameless(question), "url = 'https://torch.example/whl/cu124'");
        for plain in ["https://pypi.org/simple", "proxy.example:3128", "socks5://10.0.0.1:1080", ""] {
            check(plain, plain);
        }
    }

    #[test]
    fn build_has_an_index_of_its_own_and_the_plain_one_has_not() {
        let check = |package: &str, build: &str, expected: Option<&str>| {
            let package: PackagePin = serde_json::from_str(package).expect("a package");
            assert_eq!(Indexes::default().of_pin(&package, build).as_deref(), expected, "{package:?}");
        };
        let release = r#"{"name":"torch","version":"2.6.0+cu124"}"#;
        check(release, "cpu", Some("https://download.pytorch.org/whl/cpu"));
        check(release, "", None);
        let night = r#"{"name":"torch","version":"2.8.0.dev20250601+cu128"}"#;
        check(night, "cu128", Some("https://download.pytorch.org/whl/nightly/cu128"));
        check(night, "", Some("https://download.pytorch.org/whl/nightly/cpu"));
        let own = r#"{"name":"torch","version":"2.6.0+cu124","index":"https://torch.example/simple"}"#;
        check(own, "cu124", Some("https://torch.example/simple"));
        check(own, "cu126", Some("https://download.pytorch.org/whl/cu126"));
    }
}
