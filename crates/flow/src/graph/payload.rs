//! A value between nodes, its type checked when the graph was built and erased then.

use std::any::Any;

/// A value between nodes. What is in the box is an `Option` of it: taken out, it leaves its room to the next one.
pub(crate) struct Payload(Box<dyn Any + Send>);

/// Room that a value left. The output of a node that hands on what it got, or another value of that type, goes into it: a
/// chain of such nodes allocates once.
pub(crate) struct Room(Box<dyn Any + Send>);

impl Payload {
    pub(crate) fn new<T: Send + 'static>(value: T) -> Self {
        Self(Box::new(Some(value)))
    }

    /// The value, if it is a `T`.
    #[inline]
    pub(crate) fn get<T: 'static>(&self) -> Option<&T> {
        self.0.downcast_ref::<Option<T>>()?.as_ref()
    }

    /// Takes the value out of its room; none if it is no `T`.
    #[inline]
    pub(crate) fn take<T: Send + 'static>(self) -> Option<(T, Room)> {
        let mut room = self.0.downcast::<Option<T>>().ok()?;
        let value = room.take()?;
        // Erased anew: so the compiler knows whether what comes next fits.
        Some((value, Room(room)))
    }

    /// The value alone; none if it is no `T`.
    pub(crate) fn into_value<T: 'static>(mut self) -> Option<T> {
        self.0.downcast_mut::<Option<T>>()?.take()
    }
}

impl Room {
    /// A value in this room, or in a new one if it does not fit.
    #[inline]
    pub(crate) fn fill<T: Send + 'static>(mut self, value: T) -> Payload {
        match self.0.downcast_mut::<Option<T>>() {
            Some(room) => {
                *room = Some(value);
                Payload(self.0)
            }
            None => Payload::new(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(payload: &Payload) -> *const () {
        std::ptr::from_ref(&*payload.0).cast()
    }

    #[test]
    fn a_value_of_the_same_type_goes_into_the_room_of_the_one_before() {
        let payload = Payload::new(1_u64);
        let at = place(&payload);
        let (value, room) = payload.take::<u64>().unwrap();
        let next = room.fill(value + 1);
        assert_eq!((place(&next), next.get::<u64>()), (at, Some(&2)));
    }

    #[test]
    fn another_type_gets_a_room_of_its_own() {
        let (value, room) = Payload::new(7_u64).take::<u64>().unwrap();
        let text = room.fill(value.to_string());
        assert_eq!(text.get::<String>().unwrap(), "7");
        assert_eq!(text.into_value::<String>().unwrap(), "7");
    }

    #[test]
    fn what_is_no_such_value_is_not_taken_for_one() {
        assert!(Payload::new(1_u64).get::<u32>().is_none());
        assert!(Payload::new(1_u64).take::<Option<u64>>().is_none());
        assert!(Payload::new(()).into_value::<u8>().is_none());
    }
}
