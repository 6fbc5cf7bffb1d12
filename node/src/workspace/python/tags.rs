//! Which wheels a machine can install, the best first: the tags of PEP 425 and PEP 600.
//!
//! Pure. Not here: asking Python what it is.

use std::collections::HashMap;

/// The tags that a Python takes, each with its rank; 0 is the best.
#[derive(Clone, Debug)]
pub(super) struct Tags(HashMap<String, usize>);

/// The C library that programs of a Linux machine are linked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Libc {
    /// The GNU one, such as (2, 36).
    Glibc(u16, u16),
    /// The small one, such as (1, 2).
    Musl(u16, u16),
}

impl Tags {
    /// The tags of a CPython 3, in the order in which installers prefer them.
    pub(super) fn of(minor: u16, platforms: &[String]) -> Self {
        let mut tags = Self(HashMap::new());
        let own = format!("cp3{minor}");
        let pure: Vec<String> = std::iter::once(format!("py3{minor}"))
            .chain(["py3".to_owned()])
            .chain((0..minor).rev().map(|older| format!("py3{older}")))
            .collect();
        tags.add(&own, &own, platforms);
        tags.add(&own, "abi3", platforms);
        tags.add(&own, "none", platforms);
        (2..minor).rev().for_each(|older| tags.add(&format!("cp3{older}"), "abi3", platforms));
        pure.iter().for_each(|python| tags.add(python, "none", platforms));
        let any = ["any".to_owned()];
        tags.add(&own, "none", &any);
        pure.iter().for_each(|python| tags.add(python, "none", &any));
        tags
    }

    fn add(&mut self, python: &str, abi: &str, platforms: &[String]) {
        for platform in platforms {
            let rank = self.0.len();
            self.0.entry(format!("{python}-{abi}-{platform}")).or_insert(rank);
        }
    }

    /// How well a wheel of this name fits; `None` where it does not.
    pub(super) fn rank(&self, file_name: &str) -> Option<usize> {
        let mut parts = file_name.strip_suffix(".whl")?.rsplit('-');
        let (platforms, abis, pythons) = (parts.next()?, parts.next()?, parts.next()?);
        let all = pythons.split('.').flat_map(|python| {
            abis.split('.').flat_map(move |abi| {
                platforms.split('.').map(move |platform| format!("{python}-{abi}-{platform}"))
            })
        });
        all.filter_map(|tag| self.0.get(&tag).copied()).min()
    }
}

/// The platform tags of a Linux machine.
pub(super) fn linux(arch: &str, libc: Libc) -> Vec<String> {
    let mut platforms = Vec::new();
    match libc {
        Libc::Glibc(2, minor) => {
            let oldest = if matches!(arch, "x86_64" | "i686") { 5 } else { 17 };
            for minor in (oldest..=minor).rev() {
                platforms.push(format!("manylinux_2_{minor}_{arch}"));
                let old = match minor {
                    17 => "manylinux2014",
                    12 => "manylinux2010",
                    5 => "manylinux1",
                    _ => continue,
                };
                platforms.push(format!("{old}_{arch}"));
            }
        }
        Libc::Musl(major, minor) => {
            platforms.extend((0..=minor).rev().map(|minor| format!("musllinux_{major}_{minor}_{arch}")));
        }
        Libc::Glibc(..) => {}
    }
    platforms.push(format!("linux_{arch}"));
    platforms
}

/// The platform tags of a Mac.
pub(super) fn macos(arch: &str, major: u16, minor: u16) -> Vec<String> {
    let arches = [arch, "universal2"];
    let version = |major: u16, minor: u16| arches.map(|arch| format!("macosx_{major}_{minor}_{arch}"));
    // From 11 on the minor version of a tag is always 0.
    let mut platforms: Vec<String> = (11..=major).rev().flat_map(|major| version(major, 0)).collect();
    let newest = if major == 10 { minor } else { 16 };
    if arch == "arm64" {
        // Programs of both kinds were already made for the versions before the first such Mac.
        platforms.extend((4..=newest).rev().map(|minor| format!("macosx_10_{minor}_universal2")));
    } else {
        platforms.extend((4..=newest).rev().flat_map(|minor| version(10, minor)));
    }
    platforms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_wheel_is_the_best() {
        let tags = Tags::of(11, &linux("x86_64", Libc::Glibc(2, 36)));
        let order = [
            "a-1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "a-1-cp311-cp311-manylinux1_x86_64.whl",
            "a-1-cp311-cp311-linux_x86_64.whl",
            "a-1-cp311-abi3-manylinux_2_28_x86_64.whl",
            "a-1-cp39-abi3-manylinux_2_28_x86_64.whl",
            "a-1-py3-none-manylinux_2_28_x86_64.whl",
            "a-1-py3-none-any.whl",
            "a-1-py38-none-any.whl",
        ];
        let ranks: Vec<_> = order.iter().map(|name| tags.rank(name).expect(name)).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert!(tags.rank("a-1-7-py2.py3-none-any.whl").is_some(), "a build number is no tag");
        for other in [
            "a-1-cp312-cp312-manylinux_2_28_x86_64.whl",
            "a-1-cp311-cp311-manylinux_2_39_x86_64.whl",
            "a-1-cp311-cp311-manylinux_2_28_aarch64.whl",
            "a-1-cp311-cp311-win_amd64.whl",
            "a-1-cp312-abi3-manylinux_2_28_x86_64.whl",
            "a-1-py2-none-any.whl",
            "a-1.tar.gz",
        ] {
            assert_eq!(tags.rank(other), None, "{other}");
        }
    }

    #[test]
    fn other_systems_have_tags_of_their_own() {
        let mac = Tags::of(12, &macos("arm64", 14, 5));
        for name in [
            "a-1-cp312-cp312-macosx_14_0_arm64.whl",
            "a-1-cp312-cp312-macosx_11_0_arm64.whl",
            "a-1-cp312-cp312-macosx_10_13_universal2.whl",
        ] {
            assert!(mac.rank(name).is_some(), "{name}");
        }
        assert_eq!(mac.rank("a-1-cp312-cp312-macosx_15_0_arm64.whl"), None);
        assert_eq!(mac.rank("a-1-cp312-cp312-macosx_11_0_x86_64.whl"), None);
        let musl = Tags::of(12, &linux("x86_64", Libc::Musl(1, 2)));
        assert!(musl.rank("a-1-cp312-cp312-musllinux_1_1_x86_64.whl").is_some());
        assert_eq!(musl.rank("a-1-cp312-cp312-manylinux_2_17_x86_64.whl"), None);
    }
}
