//! A customer interface: a customer that may not send gets a RST at once.

use std::io::ErrorKind;

use portcullis::config::{CustomerRefusal, Role};
use portcullis_tests::root;

use crate::scene::{HONEST4, HONEST6, LISTED4, PERMITTED4, Receiving, Scene, knock};

#[test]
fn a_customer_is_refused_at_once_unless_it_is_permitted() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let _receiving = Receiving::at_outside(&scene)?;
    let mut settings = scene.settings();
    settings.interfaces[0].role = Role::Customer;
    let mut filter = scene.attach(&settings)?;
    for source in [HONEST4, HONEST6, LISTED4] {
        let refused = scene.outside.run(|| knock(source, 25))?;
        let kind = refused.map(|_| ()).map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{source}");
        assert!(scene.reaches(source, 587), "port 587 is not filtered");
    }
    assert!(scene.reaches(PERMITTED4, 25));
    let status = scene.status();
    let wan = &status.interfaces[0];
    assert_eq!(
        (wan.role, wan.resets, wan.dropped.customer),
        ("customer", 3, 0)
    );
    assert!(wan.permitted > 0, "{wan:?}");

    settings.customer_refusal = CustomerRefusal::Drop;
    filter.update_settings(&settings)?;
    let dropped = scene.outside.run(|| knock(HONEST4, 25))?;
    let kind = dropped.map(|_| ()).map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::TimedOut));
    assert_eq!(scene.status().interfaces[0].dropped.customer, 1);

    settings.customer_refusal = CustomerRefusal::Reset;
    settings.resets_per_second = 0;
    filter.update_settings(&settings)?;
    assert!(!scene.reaches(HONEST4, 25));
    assert_eq!(
        scene.status().interfaces[0].dropped.customer,
        2,
        "beyond the rate it is a drop"
    );
    Ok(())
}

#[test]
fn another_role_takes_effect_with_the_next_attachment() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut settings = scene.settings();
    drop(scene.attach(&settings)?);
    assert!(scene.reaches(HONEST4, 25));
    settings.interfaces[0].role = Role::Customer;
    drop(scene.attach(&settings)?);
    assert!(!scene.reaches(HONEST4, 25));
    assert_eq!(scene.status().interfaces[0].role, "customer");
    Ok(())
}
