//! Whether a line that asks for a package is for other machines, by the marker behind it (PEP 508).
//!
//! Pure, and no judge of what it does not understand: uv reads every marker. Not here: the rest of the line.

use protocol::EnvironmentSpec;

use super::interpreter::minor_of;

/// Whether a marker is false in an environment for sure.
pub(super) fn is_false(marker: &str, spec: &EnvironmentSpec) -> bool {
    let is_false_all = |all: &str| all.split(" and ").any(|term| is_false_term(term, spec));
    !marker.contains(['(', ')']) && marker.split(" or ").all(is_false_all)
}

fn is_false_term(term: &str, spec: &EnvironmentSpec) -> bool {
    let is_operator = |c: char| "=!<>~".contains(c);
    let Some((name, rest)) = term.find(is_operator).map(|at| term.split_at(at)) else { return false };
    let (operator, value) = rest.split_at(rest.find(|c| !is_operator(c)).unwrap_or(rest.len()));
    let Some(value) = unquoted(value.trim()) else { return false };
    let (system, machine) = spec.platform.split_once('-').unwrap_or_default();
    let here = match (name.trim(), system) {
        ("python_version", _) => return is_false_version(operator, value, spec),
        ("os_name", "linux" | "macos") => "posix",
        ("sys_platform", "linux") => "linux",
        ("sys_platform", "macos") => "darwin",
        ("platform_system", "linux") => "Linux",
        ("platform_system", "macos") => "Darwin",
        ("platform_machine", "linux") => machine,
        _ => return false,
    };
    match operator {
        "==" => here != value,
        "!=" => here == value,
        _ => false,
    }
}

fn is_false_version(operator: &str, value: &str, spec: &EnvironmentSpec) -> bool {
    let here = spec.python.as_ref().and_then(|python| version(&minor_of(python.as_str())));
    let (Some(here), Some(value)) = (here, version(value)) else { return false };
    match operator {
        "==" => here != value,
        "!=" => here == value,
        "<" => here >= value,
        "<=" => here > value,
        ">" => here <= value,
        ">=" => here < value,
        _ => false,
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn unquoted(text: &str) -> Option<&str> {
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\''))
}

#[cfg(test)]
mod tests {
    use protocol::{Accelerator, Lockfile};

    use super::*;

    #[test]
    fn marker_is_false_where_that_is_sure_and_all_others_are_left_to_uv() {
        let lockfile = Lockfile::parse(br#"{"format":1,"python":"3.11.7"}"#).expect("a lockfile");
        let check = |marker: &str, expected: bool| {
            let spec = EnvironmentSpec::of(&lockfile, "linux-x86_64", Accelerator::Cpu);
            assert_eq!(is_false(marker, &spec), expected, "{marker}");
        };
        check("sys_platform == 'win32'", true);
        check(" sys_platform=='linux'", false);
        check("platform_system != \"Linux\"", true);
        check("os_name == 'nt' or platform_machine == 'aarch64'", true);
        check("os_name == 'nt' or platform_machine == 'x86_64'", false);
        check("python_version < '3.10'", true);
        check("python_version >= '3.9' and sys_platform == 'darwin'", true);
        check("python_version == '3.11'", false);
        check("python_version == '3.*'", false);
        check("sys_platform === 'win32'", false);
        check("(sys_platform == 'win32')", false);
        check("extra == 'x'", false);
        check("sys_platform == 'a or b'", false);
        check("", false);
    }
}
