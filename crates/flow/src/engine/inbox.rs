//! The queue in front of a node: fair between tenants, by priority within one, in order within that. Pure.
//!
//! ```text
//!   lane of tenant a   [prio 9: m m] [prio 0: m m m]   held per edge: queued + taken + in back-off, at most its bound
//!   lane of tenant b   [prio 0: m]
//!   ring: a b          who is next; a lane that is empty or blocked is not in it
//! ```
//!
//! A message is *held* against the bound of its edge from `reserve` until `release`; in between it may be taken and put back.

use std::collections::VecDeque;

use smallvec::SmallVec;

const NONE: u32 = u32::MAX;

/// Lanes that were emptied keep room for this many messages.
const KEPT_ROOM: usize = 64;

/// A message that was taken, with what is needed to put it back or to release its place.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    pub tenant: u32,
    pub priority: u8,
    /// By which edge it came.
    pub edge: u16,
    pub item: T,
}

/// Messages of one priority, each with the edge it came by.
type Queue<T> = (u8, VecDeque<(u16, T)>);

#[derive(Debug)]
struct Lane<T> {
    tenant: u32,
    /// By priority, highest first.
    queues: SmallVec<[Queue<T>; 1]>,
    len: usize,
    /// Per edge.
    held: SmallVec<[u32; 4]>,
    /// Per edge: somebody waits for room.
    wanted: SmallVec<[bool; 4]>,
    blocked: bool,
    in_ring: bool,
}

/// The queue in front of a node.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    bounds: SmallVec<[usize; 4]>,
    lanes: Vec<Lane<T>>,
    free: Vec<u32>,
    /// Lane of each tenant.
    of: Vec<u32>,
    ring: VecDeque<u32>,
    len: usize,
}

impl<T> Inbox<T> {
    /// An empty inbox; `bounds` are the most messages held per tenant on each edge into it.
    pub(crate) fn new(bounds: impl IntoIterator<Item = usize>) -> Self {
        Self {
            bounds: bounds.into_iter().collect(),
            lanes: Vec::new(),
            free: Vec::new(),
            of: Vec::new(),
            ring: VecDeque::new(),
            len: 0,
        }
    }

    /// Messages that wait in it.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// What waits in it, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let queues = self.lanes.iter().flat_map(|lane| &lane.queues);
        queues.flat_map(|(_, queue)| queue.iter().map(|(_, item)| item))
    }

    /// Whether [`Inbox::take`] would take something.
    pub(crate) fn has_some(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Messages held against the bound of an edge.
    #[cfg(test)]
    pub(crate) fn held(&self, tenant: u32, edge: u16) -> usize {
        self.lane(tenant)
            .map_or(0, |lane| self.lanes[lane].held[usize::from(edge)] as usize)
    }

    #[inline]
    fn lane(&self, tenant: u32) -> Option<usize> {
        let lane = *self.of.get(tenant as usize)?;
        (lane != NONE).then_some(lane as usize)
    }

    /// The lane of a tenant.
    #[inline]
    fn open(&mut self, tenant: u32) -> usize {
        match self.lane(tenant) {
            Some(lane) => lane,
            None => self.open_new(tenant),
        }
    }

    #[inline(never)]
    fn open_new(&mut self, tenant: u32) -> usize {
        let at = tenant as usize;
        if self.of.len() <= at {
            self.of.resize(at + 1, NONE);
        }
        let lane = if let Some(lane) = self.free.pop() {
            self.lanes[lane as usize].tenant = tenant;
            lane as usize
        } else {
            let edges = self.bounds.len();
            self.lanes.push(Lane {
                tenant,
                queues: SmallVec::new(),
                len: 0,
                held: SmallVec::from_elem(0, edges),
                wanted: SmallVec::from_elem(false, edges),
                blocked: false,
                in_ring: false,
            });
            self.lanes.len() - 1
        };
        self.of[at] = u32::try_from(lane).unwrap_or(NONE);
        lane
    }

    /// Gives the lane of a tenant back when nothing is in it or known of it.
    fn close_if_idle(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        let idle = lane.len == 0
            && !lane.blocked
            && lane.held.iter().all(|held| *held == 0)
            && lane.wanted.iter().all(|wanted| !wanted);
        if !idle {
            return;
        }
        lane.queues.truncate(1);
        for (_, queue) in &mut lane.queues {
            queue.shrink_to(KEPT_ROOM);
        }
        let tenant = std::mem::replace(&mut lane.tenant, NONE);
        self.of[tenant as usize] = NONE;
        self.free.push(u32::try_from(at).unwrap_or(NONE));
    }

    /// Takes a place on an edge, if there is one.
    pub(crate) fn reserve(&mut self, tenant: u32, edge: u16) -> bool {
        let at = self.open(tenant);
        let held = &mut self.lanes[at].held[usize::from(edge)];
        let room = (*held as usize) < self.bounds[usize::from(edge)];
        if room {
            *held += 1;
        }
        room
    }

    /// Takes a place on an edge even where there is none: for a message that had one and comes back.
    pub(crate) fn hold(&mut self, tenant: u32, edge: u16) {
        let at = self.open(tenant);
        self.lanes[at].held[usize::from(edge)] += 1;
    }

    /// Takes a place and adds a message to it; gives it back if there is none.
    #[inline]
    pub(crate) fn offer(&mut self, message: Taken<T>) -> Result<(), Taken<T>> {
        let at = self.open(message.tenant);
        let edge = usize::from(message.edge);
        let held = &mut self.lanes[at].held[edge];
        if *held as usize >= self.bounds[edge] {
            return Err(message);
        }
        *held += 1;
        self.insert_at(at, message, false);
        Ok(())
    }

    /// Adds a message whose place is taken.
    pub(crate) fn put(&mut self, message: Taken<T>) {
        self.insert(message, false);
    }

    /// Puts a message that was taken, and still has its place, in front of its queue again.
    pub(crate) fn put_back(&mut self, message: Taken<T>) {
        self.insert(message, true);
    }

    fn insert(&mut self, message: Taken<T>, front: bool) {
        let at = self.open(message.tenant);
        self.insert_at(at, message, front);
    }

    #[inline]
    fn insert_at(&mut self, at: usize, message: Taken<T>, front: bool) {
        let lane = &mut self.lanes[at];
        if matches!(lane.queues.as_slice(), [(priority, _)] if *priority == message.priority) {
            return self.push_at(at, 0, message, front);
        }
        self.insert_by_priority(at, message, front);
    }

    fn insert_by_priority(&mut self, at: usize, message: Taken<T>, front: bool) {
        let lane = &mut self.lanes[at];
        let found = lane
            .queues
            .iter()
            .position(|(priority, _)| *priority <= message.priority);
        let place = found.unwrap_or(lane.queues.len());
        let exact = lane.queues.get(place);
        if exact.is_none_or(|(priority, _)| *priority != message.priority) {
            match lane.queues.first_mut() {
                // The one queue that an idle lane keeps takes on any priority.
                Some((priority, queue)) if lane.len == 0 && queue.is_empty() => {
                    *priority = message.priority;
                    lane.queues.truncate(1);
                    return self.push_at(at, 0, message, front);
                }
                _ => lane
                    .queues
                    .insert(place, (message.priority, VecDeque::new())),
            }
        }
        self.push_at(at, place, message, front);
    }

    fn push_at(&mut self, at: usize, place: usize, message: Taken<T>, front: bool) {
        let lane = &mut self.lanes[at];
        let queue = &mut lane.queues[place].1;
        if front {
            queue.push_front((message.edge, message.item));
        } else {
            queue.push_back((message.edge, message.item));
        }
        lane.len += 1;
        self.len += 1;
        self.enter_ring(at, front);
    }

    fn enter_ring(&mut self, at: usize, front: bool) {
        let lane = &mut self.lanes[at];
        if lane.in_ring || lane.blocked || lane.len == 0 {
            return;
        }
        lane.in_ring = true;
        let at = u32::try_from(at).unwrap_or(NONE);
        if front {
            self.ring.push_front(at);
        } else {
            self.ring.push_back(at);
        }
    }

    /// Takes the next message: of the next tenant, its highest priority, the oldest. Its place stays held.
    pub(crate) fn take(&mut self) -> Option<Taken<T>> {
        let at = *self.ring.front()?;
        let lane = &mut self.lanes[at as usize];
        let full = lane.queues.iter_mut().find(|(_, queue)| !queue.is_empty());
        let (priority, queue) = full?;
        let (edge, item) = queue.pop_front()?;
        let taken = Taken {
            tenant: lane.tenant,
            priority: *priority,
            edge,
            item,
        };
        lane.len -= 1;
        self.len -= 1;
        if lane.queues.len() > 1 {
            lane.queues.retain(|(_, queue)| !queue.is_empty());
        }
        if lane.len == 0 {
            lane.in_ring = false;
            self.ring.pop_front();
        } else if self.ring.len() > 1 {
            self.ring.rotate_left(1);
        }
        Some(taken)
    }

    /// Gives places back. True when somebody waits for it and there is room now; who waits is then forgotten.
    #[must_use]
    pub(crate) fn release(&mut self, tenant: u32, edge: u16, places: u32) -> bool {
        let Some(at) = self.lane(tenant) else {
            return false;
        };
        let edge = usize::from(edge);
        let lane = &mut self.lanes[at];
        lane.held[edge] = lane.held[edge].saturating_sub(places);
        let room = (lane.held[edge] as usize) < self.bounds[edge];
        let wanted = room && std::mem::take(&mut lane.wanted[edge]);
        self.close_if_idle(at);
        wanted
    }

    /// Notes that somebody waits for room on an edge.
    pub(crate) fn want(&mut self, tenant: u32, edge: u16) {
        let at = self.open(tenant);
        self.lanes[at].wanted[usize::from(edge)] = true;
    }

    /// Whether nothing more of this tenant may be taken, because its outputs find no room.
    pub(crate) fn set_blocked(&mut self, tenant: u32, blocked: bool) {
        let at = self.open(tenant);
        self.lanes[at].blocked = blocked;
        if blocked && self.lanes[at].in_ring {
            self.lanes[at].in_ring = false;
            self.ring.retain(|lane| *lane as usize != at);
        }
        self.enter_ring(at, false);
        self.close_if_idle(at);
    }

    /// Takes all out, without order, and forgets what is held, wanted and blocked.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let old = std::mem::replace(self, Self::new(self.bounds.iter().copied()));
        let queues = old.lanes.into_iter().flat_map(|lane| lane.queues);
        queues
            .flat_map(|(_, queue)| queue)
            .map(|(_, item)| item)
            .collect()
    }

    /// Whether no lane is open: nothing is in it, held, wanted or blocked.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.free.len() == self.lanes.len() && self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tenant: u32, priority: u8, item: u32) -> Taken<u32> {
        Taken {
            tenant,
            priority,
            edge: 0,
            item,
        }
    }

    fn push(inbox: &mut Inbox<u32>, tenant: u32, priority: u8, item: u32) -> bool {
        let room = inbox.reserve(tenant, 0);
        if room {
            inbox.put(message(tenant, priority, item));
        }
        room
    }

    fn all(inbox: &mut Inbox<u32>) -> Vec<u32> {
        let mut items = Vec::new();
        while let Some(taken) = inbox.take() {
            let _room = inbox.release(taken.tenant, taken.edge, 1);
            items.push(taken.item);
        }
        items
    }

    #[test]
    fn tenants_take_turns_and_each_keeps_its_order() {
        let mut inbox = Inbox::new([64]);
        for item in 0..4 {
            assert!(push(&mut inbox, 0, 0, item));
        }
        assert!(push(&mut inbox, 7, 0, 100));
        assert!(push(&mut inbox, 7, 0, 101));
        assert_eq!(all(&mut inbox), [0, 100, 1, 101, 2, 3]);
        assert!(inbox.is_at_rest());
    }

    #[test]
    fn higher_priority_goes_first_within_its_tenant_only() {
        let mut inbox = Inbox::new([64]);
        for (tenant, priority, item) in [(0, 0, 1), (0, 5, 2), (0, 9, 3), (0, 5, 4), (1, 0, 9)] {
            assert!(push(&mut inbox, tenant, priority, item));
        }
        assert_eq!(all(&mut inbox), [3, 9, 2, 4, 1]);
    }

    #[test]
    fn what_is_offered_gets_a_place_or_comes_back() {
        let mut inbox = Inbox::new([2]);
        assert!(inbox.offer(message(0, 0, 1)).is_ok());
        assert!(inbox.offer(message(0, 9, 2)).is_ok());
        let full = inbox.offer(message(0, 0, 3)).unwrap_err();
        assert_eq!((full.item, inbox.held(0, 0), inbox.len()), (3, 2, 2));
        assert!(inbox.offer(message(1, 0, 4)).is_ok());
        assert_eq!(all(&mut inbox), [2, 4, 1]);
        assert!(inbox.is_at_rest());
    }

    #[test]
    fn the_bound_of_an_edge_holds_per_tenant_until_places_are_released() {
        let mut inbox = Inbox::new([2, 1]);
        assert!(push(&mut inbox, 0, 0, 1) && push(&mut inbox, 0, 0, 2));
        assert!(!push(&mut inbox, 0, 0, 3), "the edge is full");
        assert!(push(&mut inbox, 1, 0, 4), "another tenant's is not");
        assert!(
            inbox.reserve(0, 1) && !inbox.reserve(0, 1),
            "nor the other edge"
        );
        inbox.want(0, 0);
        let taken = inbox.take().unwrap();
        assert!(!inbox.reserve(0, 0), "taken is not yet released");
        assert!(
            inbox.release(taken.tenant, taken.edge, 1),
            "who waits is told"
        );
        assert!(inbox.reserve(0, 0));
        assert_eq!(inbox.held(0, 0), 2);
    }

    #[test]
    fn what_is_put_back_comes_first_again() {
        let mut inbox = Inbox::new([8]);
        for item in 1..=3 {
            assert!(push(&mut inbox, 0, 0, item));
        }
        let (one, two) = (inbox.take().unwrap(), inbox.take().unwrap());
        inbox.put_back(two);
        inbox.put_back(one);
        assert_eq!(all(&mut inbox), [1, 2, 3]);
    }

    #[test]
    fn a_blocked_tenant_waits_and_others_do_not() {
        let mut inbox = Inbox::new([8]);
        assert!(push(&mut inbox, 0, 0, 1) && push(&mut inbox, 1, 0, 2));
        inbox.set_blocked(0, true);
        assert!(push(&mut inbox, 0, 0, 3));
        assert_eq!(all(&mut inbox), [2]);
        assert!(!inbox.has_some() && inbox.len() == 2);
        inbox.set_blocked(0, false);
        assert_eq!(all(&mut inbox), [1, 3]);
        assert!(inbox.is_at_rest());
    }

    #[test]
    fn ten_thousand_tenants_leave_nothing_behind() {
        let mut inbox = Inbox::new([4]);
        for tenant in 0..10_000 {
            assert!(push(&mut inbox, tenant, (tenant % 3) as u8, tenant));
            assert_eq!(all(&mut inbox), [tenant]);
        }
        assert!(inbox.is_at_rest());
        assert_eq!(inbox.lanes.len(), 1, "one lane served them all");
    }

    mod random {
        use std::collections::HashMap;

        use proptest::prelude::*;

        use super::*;

        #[derive(Debug, Clone)]
        enum Op {
            Push(u32, u8, u16),
            Take,
            PutBack,
            Release,
            Block(u32, bool),
        }

        fn op() -> impl Strategy<Value = Op> {
            prop_oneof![
                4 => (0..3u32, 0..3u8, 0..2u16).prop_map(|(t, p, e)| Op::Push(t, p, e)),
                3 => Just(Op::Take),
                1 => Just(Op::PutBack),
                3 => Just(Op::Release),
                1 => (0..3u32, any::<bool>()).prop_map(|(t, b)| Op::Block(t, b)),
            ]
        }

        proptest! {
            /// Whatever is done: bounds hold, nothing is lost or doubled, and order holds per tenant, priority and edge.
            #[test]
            fn bounds_and_order_hold(ops in prop::collection::vec(op(), 0..200)) {
                let mut inbox = Inbox::new([3, 2]);
                let (mut next, mut inside, mut running) = (0u32, 0usize, Vec::new());
                let mut last: HashMap<(u32, u8, u16), u32> = HashMap::new();
                for op in ops {
                    match op {
                        Op::Push(tenant, priority, edge) => {
                            if inbox.reserve(tenant, edge) {
                                next += 1;
                                inside += 1;
                                inbox.put(Taken { tenant, priority, edge, item: next });
                            } else {
                                prop_assert_eq!(inbox.held(tenant, edge), [3, 2][usize::from(edge)]);
                            }
                        }
                        Op::Take => running.extend(inbox.take()),
                        Op::PutBack => if let Some(taken) = running.pop() { inbox.put_back(taken) },
                        Op::Release => if !running.is_empty() {
                            let done = running.remove(0);
                            let _room = inbox.release(done.tenant, done.edge, 1);
                            let key = (done.tenant, done.priority, done.edge);
                            prop_assert!(last.insert(key, done.item).is_none_or(|before| before < done.item));
                            inside -= 1;
                        },
                        Op::Block(tenant, blocked) => inbox.set_blocked(tenant, blocked),
                    }
                    prop_assert_eq!(inbox.len() + running.len(), inside);
                }
                for tenant in 0..3 { inbox.set_blocked(tenant, false); }
                while let Some(taken) = inbox.take() { running.push(taken); }
                prop_assert_eq!(running.len(), inside);
                for done in running { let _room = inbox.release(done.tenant, done.edge, 1); }
                prop_assert!(inbox.is_at_rest());
            }
        }
    }
}
