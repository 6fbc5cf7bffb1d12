//! Where packages come from, and which build of the torch family a machine gets.
//!
//! Pure, and the one place that decides it: what a plan shows is what is installed.

use protocol::Accelerator;

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
            let authority =
                index.split("://").nth(1).unwrap_or_default().split('/').next().unwrap_or_default();
            // The owner's own may have a name and a password in it.
            let named = authority.rsplit('@').next().unwrap_or_default().split(':').next();
            named.is_some_and(|named| named.eq_ignore_ascii_case(host))
        };
        FILE_HOSTS.contains(&host) || indexes.into_iter().any(is_host)
    }

    /// The index of a build of torch (empty: the plain one).
    pub(super) fn of_build(&self, build: &str) -> Option<String> {
        let torch = self.torch.as_ref()?;
        (!build.is_empty()).then(|| format!("{}/{build}", torch.trim_end_matches('/')))
    }

    /// The builds that are tried in order for what was recorded (`cu124`; empty for the plain one).
    pub(super) fn builds(&self, recorded: &str, accelerator: Accelerator) -> Vec<String> {
        if self.torch.is_none() {
            return vec![String::new()];
        }
        match build_for(recorded, accelerator) {
            Some(build) => vec![build],
            None => candidates(accelerator),
        }
    }
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
        check("cu128", "cpu", &["cpu"]);
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
    fn build_has_an_index_of_its_own_and_the_plain_one_has_not() {
        let indexes = Indexes::default();
        assert_eq!(indexes.of_build("cpu").as_deref(), Some("https://download.pytorch.org/whl/cpu"));
        assert_eq!(indexes.of_build(""), None);
    }
}
