//! The SYN budget: so many new connections of one source in a second, of a local one as many as it likes.

use portcullis_tests::root;

use crate::scene::{HONEST4, HONEST6, Scene};

#[test]
fn a_source_has_so_many_syns_in_a_second_unless_it_is_local() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    settings.syn_budget = 2;
    let mut filter = scene.attach(&settings)?;
    // Ten connections take far less than a second, unless they are dropped: each drop waits for an answer.
    let refused = |source: &str| (0..10).filter(|_| !scene.reaches(source, 25)).count();
    assert!(refused(HONEST4) > 0 && refused(HONEST6) > 0);
    let budgeted = scene.status().interfaces[0].dropped.syn_budget;
    assert!(budgeted > 1, "{budgeted}");

    settings.local_networks = vec!["192.0.2.0/24".parse()?, "2001:db8::/32".parse()?];
    filter.update_settings(&settings)?;
    assert_eq!((refused(HONEST4), refused(HONEST6)), (0, 0));
    settings.local_networks.clear();
    settings.syn_budget = 0;
    filter.update_settings(&settings)?;
    assert_eq!(
        (refused(HONEST4), refused(HONEST6)),
        (0, 0),
        "0 is no bound"
    );
    assert_eq!(scene.status().interfaces[0].dropped.syn_budget, budgeted);
    Ok(())
}
