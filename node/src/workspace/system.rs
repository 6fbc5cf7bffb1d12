//! What of the system a workspace needs, and which of it this machine lacks.
//!
//! A rebuild brings packages and custom nodes, and nothing that belongs to the system. What is lacking is told and refuses
//! nothing, because not all that is linked or called is needed by each workflow. Not here: how it is found out on the
//! machine where a bundle is packed (`lock`).

use protocol::SystemNeeds;

use crate::os::installed::{Libraries, program};

/// What this machine lacks, in words; of libraries nothing where it cannot be told. Blocks.
pub(super) fn lacking(needs: &SystemNeeds) -> Vec<String> {
    let here = if needs.libraries.is_empty() { None } else { Libraries::look() };
    let is_lacking = |name: &str| here.as_ref().is_some_and(|here| !here.has(name));
    let libraries = needs.libraries.iter().filter(|need| is_lacking(need.name.as_str()));
    let libraries = libraries.map(|need| {
        format!("packages or custom nodes are linked to a library that this machine lacks: {need}")
    });
    let programs = needs.programs.iter().filter(|need| program(need.name.as_str()).is_none());
    let programs =
        programs.map(|need| format!("custom nodes call a program that this machine lacks: {need}"));
    libraries.chain(programs).collect()
}

#[cfg(test)]
mod tests {
    use protocol::SystemNeed;

    use super::*;

    #[test]
    fn what_this_machine_lacks_is_told_with_the_package_that_has_it() {
        let need = |name: &str, package: Option<&str>| SystemNeed {
            name: name.parse().expect("a name"),
            package: package.map(|package| package.parse().expect("a name")),
        };
        let needs = SystemNeeds {
            libraries: vec![need("libc.so.6", Some("libc6")), need("libnowhere.so.1", Some("libnowhere1"))],
            programs: vec![need("sh", None), need("no-such-program", None)],
        };
        if Libraries::look().is_none() {
            return;
        }
        let told = lacking(&needs);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].ends_with("lacks: libnowhere.so.1 (Debian and Ubuntu: `apt install libnowhere1`)"),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("custom nodes call a program") && told[1].ends_with("no-such-program"),
            "{told:?}"
        );
        assert!(lacking(&SystemNeeds::default()).is_empty());
    }
}
