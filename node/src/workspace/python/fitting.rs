//! Which lock of the farm is that of an environment here: its own, or one of a machine with another driver.
//!
//! Pure. A driver's version is part of what names an environment, because it decides which build of torch is chosen;
//! several versions come to the same one. Not here: whether this system can install it, which is found as that begins.

use protocol::{Accelerator, EnvironmentLock, EnvironmentSpec, Resolution};

use super::Indexes;
use super::project::pins;
use super::resolve::recorded_build;

/// The lock of this environment, else one of the same pins and platform that a machine with another version of CUDA came
/// to, where completing the pins here would choose the same build of torch. A build that merely runs is not enough: the
/// one that a newer driver would choose may be the first that knows its card.
pub(crate) fn lock_for<'a>(
    known: &'a Resolution,
    spec: &EnvironmentSpec,
    indexes: &Indexes,
) -> Option<&'a EnvironmentLock> {
    let fits = |lock: &&EnvironmentLock| {
        let theirs = EnvironmentSpec { accelerator: lock.accelerator, ..spec.clone() };
        lock.environment == theirs.hash() && chooses_as(lock, spec, indexes)
    };
    known.environment(spec).or_else(|| known.environments.iter().find(fits))
}

fn chooses_as(lock: &EnvironmentLock, spec: &EnvironmentSpec, indexes: &Indexes) -> bool {
    let (Accelerator::Cuda { .. }, Accelerator::Cuda { .. }) = (spec.accelerator, lock.accelerator) else {
        return false;
    };
    let Some(torch) = &lock.torch else { return true };
    let Ok(pins) = pins(spec) else { return false };
    let recorded = recorded_build(&pins);
    let build = torch.as_str().split_once('+').map_or("", |(_, build)| build);
    // What is tried before it, and was not to be had where it was chosen.
    let before = |accelerator| {
        let builds = indexes.builds(recorded, accelerator);
        let at = builds.iter().position(|tried| tried == build)?;
        Some(builds.into_iter().take(at).collect::<Vec<_>>())
    };
    let (ours, theirs) = (before(spec.accelerator), before(lock.accelerator));
    ours.zip(theirs).is_some_and(|(ours, theirs)| ours.iter().all(|build| theirs.contains(build)))
}

#[cfg(test)]
mod tests {
    use protocol::Lockfile;
    use serde_json::json;

    use super::*;

    fn lockfile(torch: &str) -> Lockfile {
        let packages = json!([{ "name": "torch", "version": torch }]);
        let lockfile = json!({ "format": 1, "python": "3.11", "packages": packages });
        Lockfile::parse(lockfile.to_string().as_bytes()).expect("a lockfile")
    }

    fn spec(recorded: &str, accelerator: &str) -> EnvironmentSpec {
        let accelerator = accelerator.parse().expect("an accelerator");
        EnvironmentSpec::of(&lockfile(recorded), "linux-x86_64", accelerator)
    }

    /// What is known after a machine with this accelerator completed the pins, with this build.
    fn known(recorded: &str, accelerator: &str, torch: Option<&str>) -> Resolution {
        let theirs = spec(recorded, accelerator);
        let lock = EnvironmentLock {
            format: 1,
            environment: theirs.hash(),
            python: "3.11.7".parse().expect("a version"),
            platform: theirs.platform,
            accelerator: theirs.accelerator,
            torch: torch.map(|torch| torch.parse().expect("a version")),
            equivalent: false,
            wheels: vec![],
            built: vec![],
        };
        Resolution { environments: vec![lock], ..Resolution::new(lockfile(recorded).hash()) }
    }

    #[test]
    fn lock_of_another_driver_is_taken_where_the_same_build_would_be_chosen() {
        let indexes = Indexes::default();
        let check = |recorded: &str, theirs: &str, chosen: Option<&str>, ours: &str, expected: bool| {
            let known = known(recorded, theirs, chosen);
            let taken = lock_for(&known, &spec(recorded, ours), &indexes).is_some();
            assert_eq!(taken, expected, "{recorded}: {chosen:?} of {theirs} on {ours}");
        };
        let recorded = Some("2.6.0+cu124");
        check("2.6.0+cu124", "cuda12.4", recorded, "cuda12.4", true);
        check("2.6.0+cu124", "cuda12.4", recorded, "cuda12.8", true);
        check("2.6.0+cu124", "cuda13.0", recorded, "cuda12.6", true);
        check("2.6.0+cu124", "cuda12.4", recorded, "cuda12.1", false);
        check("2.6.0+cu124", "cuda12.4", recorded, "cpu", false);
        let other = Some("2.7.0+cu126");
        check("2.7.0", "cuda12.6", other, "cuda12.7", true);
        check("2.7.0", "cuda12.8", other, "cuda12.6", true);
        check("2.7.0", "cuda12.6", other, "cuda12.8", false);
        check("2.7.0", "cuda12.6", other, "rocm", false);
        check("2.7.0", "cuda12.6", None, "cuda13.0", true);
        check("2.7.0", "cpu", Some("2.7.0+cpu"), "cuda12.6", false);
    }

    #[test]
    fn lock_of_other_pins_or_another_platform_is_not_taken() {
        let known = known("2.6.0+cu124", "cuda12.4", Some("2.6.0+cu124"));
        let mut elsewhere = spec("2.6.0+cu124", "cuda12.8");
        elsewhere.platform = "linux-aarch64".to_owned();
        for spec in [spec("2.7.0+cu124", "cuda12.8"), elsewhere] {
            assert_eq!(lock_for(&known, &spec, &Indexes::default()), None);
        }
    }
}
