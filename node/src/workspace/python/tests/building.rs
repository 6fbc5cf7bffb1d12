//! Packages that are built from their sources.

use std::time::Duration;

use protocol::{Accelerator, EnvironmentSpec, Lockfile};

use super::super::*;
use super::index::{sdist, wheel};
use super::{Setting, listed, names, python};

#[tokio::test]
async fn source_is_built_once_and_others_install_what_was_built() {
    let Some(first) = Setting::new(vec![sdist("old", "0.6", "")]).await else { return };
    let lock = first.resolve(r#"[{"name":"old","version":"0.6"}]"#, "").await.expect("a source");
    assert_eq!((names(&lock).len(), lock.built.len()), (0, 1));
    let environment = first.build(&lock).await.expect("it is built");
    assert_eq!(python(&environment, "import old; print(old.VERSION)"), "0.6");
    let wheel = environment.lock.built[0].wheel.clone().expect("the wheel is recorded");
    assert_eq!(environment.key, lock.key(None), "what was built changes no name");
    assert_eq!(environment.built.len(), 1);

    let second = Setting::new(Vec::new()).await.expect("there is a uv");
    second.downloads.add(&wheel, &environment.built[0]);
    let built = second.build(&environment.lock).await.expect("the built wheel is enough");
    assert_eq!(built.lock, environment.lock);
    assert_eq!(python(&built, "import old; print(old.VERSION)"), "0.6");

    // One whose owner allows no builds takes what was built, and builds nothing where that does not come.
    let third = Setting::new(Vec::new()).await.expect("there is a uv");
    let protocol::BuildSource::File(source) = &lock.built[0].source else { panic!("an archive") };
    third.downloads.add(source, &first.downloads.path(source));
    let environments = Environments { build_sources: false, ..third.environments() };
    let build = async || {
        environments.build(&environment.lock, None, &*third.downloads, &third.log, &third.cancel).await
    };
    let refused = build().await.expect_err("nobody gives the wheel").to_string();
    assert!(refused.contains("`--allow-install-scripts`: `old` 0.6"), "{refused}");
    third.downloads.add(&wheel, &environment.built[0]);
    assert_eq!(build().await.expect("the wheel is here").lock, environment.lock);
}

#[tokio::test]
async fn wheel_that_another_node_built_for_another_machine_is_not_taken() {
    let Some(setting) = Setting::new(vec![sdist("old", "0.6", "")]).await else { return };
    let mut lock = setting.resolve(r#"[{"name":"old","version":"0.6"}]"#, "").await.expect("a source");
    let mut wheel = lock.wheels[0].file.clone();
    wheel.file_name = "old-0.6-cp39-cp39-win_amd64.whl".parse().expect("a name");
    lock.built[0].wheel = Some(wheel);
    let error = setting.build(&lock).await.expect_err("it is for another system");
    assert!(matches!(error, PythonError::OtherMachine { .. }), "{error}");
}

#[tokio::test]
async fn name_and_password_of_an_index_are_not_shown_to_code_that_is_built() {
    let looks = "import os; assert 'secret' not in str(os.environ), 'it sees the password'";
    let files = vec![
        sdist("old", "0.6", looks),
        wheel("app", "1.0", &[]),
        wheel("torch", "2.6.0+cpu", &[]).at("torch/cpu"),
    ];
    let Some(mut setting) = Setting::new(files).await else { return };
    let named = |address: &str| address.replace("://", "://me:secret@");
    let Indexes { packages, torch } = setting.uv.config.indexes.clone();
    setting.uv.config.indexes = Indexes { packages: named(&packages), torch: torch.as_deref().map(named) };
    let pins = r#"[{"name":"old","version":"0.6"},{"name":"app","version":"1.0"},{"name":"torch","version":"2.6.0"}]"#;
    let lock = setting.resolve(pins, "").await.expect("it goes together");
    assert!(!format!("{lock:?}").contains("secret"), "{lock:?}");
    setting.build(&lock).await.expect("it is built");
    assert!(setting.log.tail().iter().all(|line| !line.contains("secret")), "{:?}", setting.log.tail());

    let hash = "1".repeat(64);
    let pins = format!(r#"[{{"name":"app","version":"1.0","hashes":["{hash}"]}}]"#);
    let error = setting.resolve(&pins, "").await.expect_err("another hash").to_string();
    assert!(error.contains(&packages) && !error.contains("secret"), "{error}");
}

#[tokio::test]
async fn source_is_refused_where_building_is_not_allowed() {
    let Some(setting) = Setting::new(vec![sdist("old", "0.6", "")]).await else { return };
    let lockfile = br#"{"format":1,"python":"3.11","packages":[{"name":"old","version":"0.6"}]}"#;
    let lockfile = Lockfile::parse(lockfile).expect("a lockfile");
    let spec = EnvironmentSpec::of(&lockfile, &crate::platform(), Accelerator::Cpu);
    let resolver = Resolver { uv: setting.uv.clone(), limits: Limits::default(), build_sources: false };
    let resolved = resolver.resolve(&spec, &[], &*setting.downloads, &setting.log, &setting.cancel).await;
    let error = resolved.expect_err("it has no wheel");
    assert!(
        matches!(&error, PythonError::NoWheel { explanation } if explanation.contains("old")),
        "{error:?}"
    );
}

#[tokio::test]
async fn build_that_hangs_is_stopped_and_leaves_nothing() {
    let hangs = "import time\n    print('soon', flush=True)\n    time.sleep(1000)";
    let Some(setting) = Setting::new(vec![sdist("slow", "1", hangs)]).await else { return };
    let lock = setting.resolve(r#"[{"name":"slow","version":"1"}]"#, "").await.expect("a source");
    let mut environments = setting.environments();
    environments.limits.build = Duration::from_secs(3);
    let built = environments.build(&lock, None, &*setting.downloads, &setting.log, &setting.cancel).await;
    let error = built.expect_err("it hangs");
    assert!(matches!(error, PythonError::BuildHangs { .. }), "{error:?}");
    let said = error.to_string();
    for word in ["building `slow-1.zip`", "longer than 3 s", "pin a version that has a wheel", "soon"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(listed(&environments.folder).is_empty());
    assert!(listed(&setting.uv.folder("temporary")).is_empty());
}

#[tokio::test]
async fn build_that_fails_shows_its_last_lines() {
    let fails = "raise RuntimeError('no compiler here')";
    let Some(setting) = Setting::new(vec![sdist("bad", "1", fails)]).await else { return };
    let lock = setting.resolve(r#"[{"name":"bad","version":"1"}]"#, "").await.expect("a source");
    let error = setting.build(&lock).await.expect_err("it fails");
    assert!(matches!(error, PythonError::Failed { .. }), "{error:?}");
    assert!(error.to_string().contains("no compiler here"), "{error}");
}

#[tokio::test]
async fn link_that_a_build_leaves_is_no_wheel() {
    let owners = tempfile::tempdir().expect("a folder");
    let file = owners.path().join("secret");
    std::fs::write(&file, "of the owner").expect("written");
    // Within its walls it has another folder of that name, so the link leads to a wheel there.
    let statement = format!(
        "import os; os.makedirs('{}', exist_ok=True); \
         os.symlink('{}', os.path.join(folder, 'old-0.6-py3-none-any.whl'))",
        owners.path().display(),
        file.display()
    );
    let Some(setting) = Setting::new(vec![sdist("old", "0.6", &statement)]).await else { return };
    let lock = setting.resolve(r#"[{"name":"old","version":"0.6"}]"#, "").await.expect("a source");
    let error = setting.build(&lock).await.expect_err("no wheel");
    assert!(matches!(&error, PythonError::Failed { step, .. } if step.contains("building")), "{error}");
}
