// Follows a resource of httpfstream from a web page: what is stored, then what arrives, then the end.
//
//     import { follow, followText } from '/.httpfstream/follow.js';
//
//     for await (const text of followText('/build.log')) log.append(text);
//
//     for await (const event of follow('/build.log', { lines: 100 })) {
//         if (event.type === 'data') console.log(event.offset, event.bytes);   // a Uint8Array, from this byte on
//         else console.log(event.state);
//     }
//
// It connects again by itself and goes on where it was, so the bytes are exact, whatever broke in between. The states:
//
//     connecting                        with `attempt` (0 is the first) and, from the second on, `reason`
//     live, lost, parked                how the resource stands; it goes on. The first after each `connecting` has the
//     finished, interrupted, sealed     `offset` where the data goes on, and the `life`. The last event of all is one of
//                                       the second line with `end: true` and `length`: only then is this the end.
//
// `followText` yields strings that never split a character, and throws a FollowError `interrupted` where the appender
// was lost for good. Who wants states and text decodes with a TextDecoder, `decode(event.bytes, { stream: true })`.
//
// Options: one of `offset` (from this byte), `tail` (the last bytes), `lines` (the last lines); `life` (only this life, to
// go on from an offset known from before); `wait` (for so many seconds an absent resource is waited for); `signal` (an
// AbortSignal: the loop then throws its reason, as fetch does); `credentials` (as fetch's, for the questions below).
// A URL may be relative, and may have a query of its own. Leaving the loop closes the connection.
//
// What can't be helped by trying again is thrown as a FollowError, whose `code` is: absent; unauthorized; forbidden; life
// (deleted and made anew: its bytes are not those seen before); past-end; refused; closed (by the server, for good);
// protocol; interrupted.

/** What ends a follow other than the resource's own end. */
export class FollowError extends Error {
    name = 'FollowError';
    constructor(code, message) {
        super(message);
        this.code = code;
    }
}

// A browser's WebSocket has no backpressure: whatever arrives has to be held until the loop takes it. With more than this
// at hand the connection is closed, and once the loop has taken it all another one goes on behind it.
const MOST_UNREAD = 32 * 1024 * 1024;
const ENDS = ['finished', 'interrupted', 'sealed'];
const FINAL = { 401: 'unauthorized', 403: 'forbidden', 404: 'absent', 412: 'life', 416: 'past-end' };

/** Follows a resource: an async iterator of its data and its states. */
export async function* follow(url, { offset, tail, lines, life, wait = 0, signal, credentials } = {}) {
    const target = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    let deadline = Date.now() + wait * 1000;
    let reason;
    let isEmpty = false; // It was there without a byte: it may come to nothing, and be made anew.
    if (tail === undefined && lines === undefined) offset ??= 0; // Else the server tells where the data begins.
    for (let attempt = 0; ; attempt++) {
        if (attempt >= 0) yield { type: 'state', state: 'connecting', attempt, ...(reason && { reason }) };
        signal?.throwIfAborted();
        // Half of it is random: those that a restart cut together don't come back together.
        if (attempt > 0) await sleep(Math.min(15000, 125 * 2 ** attempt) * (1 + Math.random()) / 2, signal);
        signal?.throwIfAborted();
        const left = Math.ceil((deadline - Date.now()) / 1000);
        const where = { verb: 'FOLLOW', offset, tail, lines, life };
        let opened, last;
        for await (last of arrivals(address(target, 'ws', { ...where, wait: left > 0 ? left : undefined }), signal)) {
            if (last.type !== 'message') break;
            if (typeof last.data !== 'string') {
                if (!opened) throw new FollowError('protocol', 'data before the first message');
                const bytes = new Uint8Array(last.data);
                [life, isEmpty] = [opened.life, false];
                yield { type: 'data', bytes, offset };
                offset += bytes.length;
                attempt = 0; // A connection that brings something is a good one, and so is one that stands for a while.
                continue;
            }
            const told = parsed(last.data);
            const end = opened && ENDS.includes(told.state);
            const at = end ? told.length : told.offset;
            if (life && told.life && told.life !== life) throw new FollowError('life', 'this is another life');
            if ((end || !opened) && at !== (offset ?? at)) throw new FollowError('protocol', `${at} is told, not ${offset}`);
            if (!opened) {
                opened = { life: told.life, at: Date.now() };
                offset = told.offset;
                tail = lines = undefined; // It is known now where to go on, and there is nothing more to wait for.
                deadline = 0;
                isEmpty = offset === 0;
                if (!isEmpty) life = told.life;
            }
            if (told.state) yield { type: 'state', ...told, ...(end && { end }) };
            if (end) return;
        }
        if ([4001, 4003].includes(last.code)) throw new FollowError('closed', last.reason || 'by the server, for good');
        if (opened && Date.now() - opened.at > 5000) attempt = 0;
        if (last.type === 'full') attempt = -2;
        else if (opened) reason = last.reason || 'the connection broke';
        else reason = await why(address(target, 'http', where), { credentials, signal }, isEmpty || Date.now() < deadline);
    }
}

/** Follows a resource as text: an async iterator of strings. */
export async function* followText(url, options) {
    const decoder = new TextDecoder();
    for await (const { bytes, end, state } of follow(url, options)) {
        const text = decoder.decode(bytes, { stream: !end });
        if (text) yield text;
        if (end && state === 'interrupted') throw new FollowError(state, 'the appender was lost: this is not the whole');
    }
}

// The events of a WebSocket in their order. The last is its `close`, or `full` where too many were not taken.
async function* arrivals(address, signal) {
    const size = ({ data }) => (data?.byteLength ?? data?.length ?? 0) + 100;
    let queue = [], unread = 0, wake;
    const add = (event) => {
        queue.push(event);
        unread += size(event);
        if (unread > MOST_UNREAD && event.type === 'message') {
            queue.push({ type: 'full' });
            socket.close();
        }
        wake?.();
    };
    const socket = new WebSocket(address, 'httpfstream.v1');
    socket.binaryType = 'arraybuffer';
    socket.onmessage = socket.onclose = add;
    signal?.addEventListener('abort', add);
    try {
        for (;;) {
            if (queue.length === 0) await new Promise((resolve) => (wake = resolve));
            const taken = queue;
            queue = [];
            for (const event of taken) {
                signal?.throwIfAborted();
                yield event;
                unread -= size(event);
            }
        }
    } finally {
        signal?.removeEventListener('abort', add);
        socket.close();
    }
}

function parsed(text) {
    try {
        return JSON.parse(text);
    } catch {
        throw new FollowError('protocol', `not JSON: ${text.slice(0, 100)}`);
    }
}

// Why a handshake failed: browsers don't tell, so the same is asked without one. Throws what is final.
async function why(address, options, isWaiting) {
    const response = await fetch(address, { method: 'HEAD', cache: 'no-store', ...options }).catch(() => undefined);
    options.signal?.throwIfAborted();
    if (!response) return 'no connection'; // Nobody is there, or the page may not ask.
    const told = `no WebSocket, and a HEAD is answered ${response.status}`;
    const code = [400, 405, 414, 421].includes(response.status) ? 'refused' : FINAL[response.status];
    if (code && !(code === 'absent' && isWaiting)) throw new FollowError(code, told);
    return told;
}

// The query is added to by hand: `searchParams` would write the caller's own part anew.
function address(target, scheme, parameters) {
    const url = new URL(target);
    url.protocol = url.protocol.replace(/^(http|ws)/, scheme);
    url.hash = '';
    const given = Object.entries(parameters).filter(([, value]) => value !== undefined);
    url.search += (url.search ? '&' : '?') + new URLSearchParams(given);
    return url.href;
}

function sleep(ms, signal) {
    const over = AbortSignal.timeout(ms);
    return new Promise((resolve) => {
        over.addEventListener('abort', resolve);
        signal?.addEventListener('abort', resolve, { signal: over });
    });
}
