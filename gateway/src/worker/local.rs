//! Something that the tasks of one worker share.
//!
//! It can be looked at and changed only within a function that returns: no borrow of it can be kept
//! over an `.await`, or by accident over the body of a `while let`. What the functions handed to
//! [`Local::with`] do is short and calls nothing that could come back to the same thing; so the
//! panic of a [`RefCell`] that is borrowed twice cannot be reached from outside.

use std::cell::RefCell;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Local<T>(RefCell<T>);

impl<T> Local<T> {
    pub(super) fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Looks at it or changes it.
    #[inline]
    pub(super) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.0.borrow_mut())
    }

    /// Puts something else in its place.
    pub(super) fn replace(&self, value: T) -> T {
        self.0.replace(value)
    }

    /// Takes it and leaves nothing.
    pub(super) fn take(&self) -> T
    where
        T: Default,
    {
        self.0.take()
    }
}
