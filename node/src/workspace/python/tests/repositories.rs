//! Packages of repositories, with real git.

use protocol::{BuildSource, GitPin, GitSource};

use super::index::source;
use super::*;
use crate::workspace::git::tests::Upstream;

/// A repository with the source of a package in this folder of it.
fn upstream(below: &str, statement: &str) -> (Upstream, GitPin) {
    let upstream = Upstream::new();
    let files =
        source("clip", "1.0", &["dep"], statement).map(|(name, text)| (format!("{below}{name}"), text));
    let files = files.each_ref().map(|(name, text)| (name.as_str(), 0o100644, text.as_str()));
    let pin = upstream.commit(&files);
    (upstream, pin)
}

fn pinned(pin: &GitPin, folder: &str) -> String {
    format!(r#"[{{"name":"Clip","git":"{}@{}{folder}"}}]"#, pin.url, pin.commit)
}

/// Gives the other machine all that an index has, and nothing that was built.
async fn give(lock: &EnvironmentLock, from: &Setting, to: &Setting) {
    for wheel in &lock.wheels {
        to.downloads
            .add(&wheel.file, &from.downloads.file(&wheel.file, None).await.expect("the index has it"));
    }
}

#[tokio::test]
async fn package_of_a_repository_is_built_at_its_commit_and_others_install_what_was_built() {
    let (upstream, pin) = upstream("python/", "open(__file__, 'a').write('# it may write beside itself')");
    let Some(first) = Setting::new(vec![wheel("dep", "2", &[])]).await else { return };
    let packages = pinned(&pin, "#subdirectory=python");
    let lock = first.resolve(&packages, "clip @ git+https://github.com/openai/CLIP.git\n").await;
    let lock = lock.expect("it is built");
    assert_eq!(names(&lock), ["dep==2"], "what its wheel asks for is completed");
    let [built] = lock.built.as_slice() else { panic!("{:?}", lock.built) };
    assert_eq!((built.name.as_str(), built.version.as_str()), ("clip", "1.0"));
    let subdirectory = Some("python".parse().expect("a folder"));
    let source = GitSource { url: pin.url, commit: pin.commit, subdirectory };
    assert_eq!(built.source, BuildSource::Git(source));
    drop(upstream);
    let environment = first.build(&lock).await.expect("it is not built again");
    assert_eq!(environment.lock, lock);
    assert_eq!(python(&environment, "import clip, dep; print(clip.VERSION)"), "1.0");

    // The other machine has neither the repository nor leave to build.
    let second = Setting::new(Vec::new()).await.expect("there is a uv");
    second.downloads.add(built.wheel.as_ref().expect("it is recorded"), &environment.built[0]);
    give(&lock, &first, &second).await;
    let environments = Environments { build_sources: false, ..second.environments() };
    let files = &*second.downloads;
    let same = environments.build(&lock, None, files, &second.log, &second.cancel).await;
    let same = same.expect("the wheel is enough");
    assert_eq!((same.key, &same.lock), (environment.key, &lock));
    assert_eq!(python(&same, "import clip, dep; print(clip.VERSION)"), "1.0");
    assert_eq!(second.index.requests(), 0);
}

#[tokio::test]
async fn what_was_built_and_is_lost_is_built_anew_from_the_commit() {
    let (_upstream, pin) = upstream("", "");
    let Some(first) = Setting::new(vec![wheel("dep", "2", &[])]).await else { return };
    let lock = first.resolve(&pinned(&pin, ""), "").await.expect("it is built");
    let second = Setting::new(vec![]).await.expect("there is a uv");
    give(&lock, &first, &second).await;
    let environment = second.build(&lock).await.expect("nobody gives the wheel");
    assert_eq!(environment.key, lock.key(None));
    assert_eq!(python(&environment, "import clip; print(clip.VERSION)"), "1.0");
}

#[tokio::test]
async fn package_of_a_repository_is_refused_with_what_would_allow_it() {
    let (_upstream, pin) = upstream("", "");
    let Some(setting) = Setting::new(vec![wheel("dep", "2", &[])]).await else { return };
    let resolver = Resolver { uv: setting.uv.clone(), limits: Limits::default(), build_sources: false };
    let lockfile = format!(r#"{{"format":1,"python":"3.11","packages":{}}}"#, pinned(&pin, ""));
    let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
    let spec = EnvironmentSpec::of(&lockfile, &crate::platform(), Accelerator::Cpu);
    let resolved = resolver.resolve(&spec, &[], &*setting.downloads, &setting.log, &setting.cancel).await;
    let refused = resolved.expect_err("it would run its code").to_string();
    for word in ["`clip`", pin.url.as_str(), "`--allow-install-scripts`"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }

    let refused = setting.resolve("[]", "clip @ git+https://github.com/openai/CLIP.git\n").await;
    let refused = refused.expect_err("which commit?").to_string();
    assert!(refused.contains("`https://github.com/openai/CLIP.git`, which names no commit"), "{refused}");
    let elsewhere = "clip @ git+https://github.com/openai/CLIP.git ; sys_platform == 'win32'\ndep\n";
    let lock = setting.resolve("[]", elsewhere).await.expect("it is for another machine");
    assert_eq!(names(&lock), ["dep==2"]);
    let other = pinned(&pin, "").replace("Clip", "other");
    let refused = setting.resolve(&other, "").await.expect_err("it is another package").to_string();
    assert!(refused.contains("package `other`") && refused.contains("has package `clip`"), "{refused}");
    let gone = GitPin { commit: "1".repeat(40).parse().expect("a commit"), ..pin };
    let refused = setting.resolve(&pinned(&gone, ""), "").await.expect_err("no such commit").to_string();
    assert!(refused.contains("the history was rewritten"), "{refused}");
}

#[tokio::test]
async fn old_source_is_tried_once_more_with_a_setuptools_that_has_what_it_wants() {
    // Nothing of it is there as it is built first.
    let statement = "import os; above = os.path.dirname(os.path.dirname(os.path.abspath(__file__))); \
                     os.path.exists(os.path.join(above, 'constraints.txt')) or exec('import pkg_resources')";
    let (_upstream, pin) = upstream("", statement);
    let Some(setting) = Setting::new(vec![wheel("dep", "2", &[])]).await else { return };
    let lock = setting.resolve(&pinned(&pin, ""), "").await.expect("the second build has another setuptools");
    assert_eq!(lock.built[0].version.as_str(), "1.0");
    let conflict = setting.resolve(&pinned(&pin, ""), "dep==3\n").await.expect_err("no such version");
    assert!(matches!(conflict, PythonError::Conflict { .. }), "{conflict}");
    let builds =
        |log: &PrepareLog| log.tail().iter().filter(|line| line.contains("was built before")).count();
    assert_eq!(builds(&setting.log), 1, "what fails after a build costs no other");
}
