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
    constructor(code, message) {
        super(message);
        this.name = 'FollowError';
        this.code = code;
    }
}

// A browser's WebSocket has no backpressure: whatever arrives has to be held until the loop takes it. With more than this
// at hand the connection is closed, and once the loop has taken it all another one goes on behind it.
const MOST_UNREAD = 32 * 1024 * 1024;
const ENDS = ['finished', 'interrupted', 'sealed'];

/** Follows a resource: an async iterator of its data and its states. */
export async function* follow(url, { offset, tail, lines, life, wait = 0, signal, credentials } = {}) {
    const target = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    const deadline = Date.now() + wait * 1000;
    let known = false; // Whether the server has told where the data begins: then `offset` and `life` say where it goes on.
    let reason;
    for (let attempt = 0; ; attempt++) {
        if (attempt >= 0) yield { type: 'state', state: 'connecting', attempt, ...(reason && { reason }) };
        signal?.throwIfAborted();
        // Half of it is random: those that a restart cut together don't come back together.
        if (attempt > 0) await sleep(Math.min(15000, 125 * 2 ** attempt) * (1 + Math.random()) / 2, signal);
        const left = Math.ceil((deadline - Date.now()) / 1000);
        const where = known ? { offset, life } : { offset, tail, lines, life, wait: left > 0 ? left : undefined };
        const socket = new WebSocket(address(target, 'ws', { verb: 'FOLLOW', ...where }), 'httpfstream.v1');
        socket.binaryType = 'arraybuffer';

        let events = [], unread = 0, full, opened, progress, end, failure, closed, wake;
        const fail = (code, message) => {
            failure = new FollowError(code, message);
            wake?.();
        };
        const add = (event) => {
            events.push(event);
            wake?.();
        };
        const control = (message) => {
            if (!opened) {
                if (life && message.life !== life) return fail('life', 'this is another life of the resource');
                const fits = known ? message.offset === offset : Number.isSafeInteger(message.offset);
                if (!fits) return fail('protocol', `the data begins at ${message.offset}`);
                opened = Date.now();
                ({ offset, life } = message);
                known = true;
                add({ type: 'state', state: message.state, offset, life });
            } else if (ENDS.includes(message.state)) {
                if (message.length !== offset) return fail('protocol', `ends at ${message.length}, but is at ${offset}`);
                end = true;
                add({ type: 'state', state: message.state, length: offset, life, end });
            } else if (message.state) {
                add({ type: 'state', state: message.state });
            }
        };
        socket.onmessage = ({ data }) => {
            if (failure || end) return;
            if (typeof data === 'string') {
                try {
                    return control(JSON.parse(data));
                } catch (error) {
                    return fail('protocol', `a control message that can't be read: ${error.message}`);
                }
            }
            if (!opened) return fail('protocol', 'data before the first message');
            progress = true;
            const bytes = new Uint8Array(data);
            add({ type: 'data', bytes, offset });
            offset += bytes.length;
            unread += bytes.length + 100;
            // Nothing is delivered after this, and the offset counts what was: so nothing is missing in between.
            if (unread > MOST_UNREAD) {
                full = true;
                socket.close();
            }
        };
        socket.onclose = (event) => {
            closed = event;
            wake?.();
        };
        const abort = () => wake?.();
        signal?.addEventListener('abort', abort);
        try {
            while (events.length > 0 || !(closed || failure)) {
                if (events.length === 0) await new Promise((resolve) => (wake = resolve));
                signal?.throwIfAborted();
                const taken = events;
                events = [];
                for (const event of taken) {
                    yield event;
                    signal?.throwIfAborted();
                    if (event.end) return;
                    if (event.bytes) unread -= event.bytes.length + 100;
                }
            }
        } finally {
            signal?.removeEventListener('abort', abort);
            socket.close();
        }
        if (failure) throw failure;
        if (closed.code === 4001 || closed.code === 4003) {
            throw new FollowError('closed', closed.reason || `closed for good, with ${closed.code}`);
        }
        reason = closed.reason || (opened ? 'the connection broke' : 'no connection');
        // One that brought something, or stood for a while, was a good one.
        if (full) attempt = -2;
        else if (progress || Date.now() - opened > 5000) attempt = 0;
        if (!opened) reason = (await why(target, credentials, signal, { known, offset, life, deadline })) ?? reason;
    }
}

/** Follows a resource as text: an async iterator of strings. */
export async function* followText(url, options) {
    const decoder = new TextDecoder();
    for await (const event of follow(url, options)) {
        const text = event.type === 'data' ? decoder.decode(event.bytes, { stream: true }) : event.end ? decoder.decode() : '';
        if (text) yield text;
        if (event.end && event.state === 'interrupted') {
            throw new FollowError('interrupted', 'the appender was lost: this is not the whole');
        }
    }
}

// Why a handshake failed: browsers don't tell. Throws what is final, else says what is known.
async function why(target, credentials, signal, { known, offset, life, deadline }) {
    let response;
    try {
        const question = address(target, 'http', { verb: 'FOLLOW' });
        response = await fetch(question, { method: 'HEAD', cache: 'no-store', credentials, signal });
    } catch {
        signal?.throwIfAborted();
        return undefined; // Nobody is there, or the page may not ask.
    }
    const { status, headers } = response;
    const now = headers.get('Stream-Life') ?? headers.get('ETag')?.match(/^"([0-9a-f]{32})-/)?.[1];
    const length = headers.get('Upload-Offset');
    if (status === 404 && (known || Date.now() >= deadline)) throw new FollowError('absent', 'there is no such resource');
    if (status === 401) throw new FollowError('unauthorized', 'the server wants credentials');
    if (status === 403) throw new FollowError('forbidden', 'the server does not allow this');
    if (life && now && now !== life) throw new FollowError('life', 'this is another life of the resource');
    if (length !== null && offset > Number(length)) throw new FollowError('past-end', `the end is at ${length}`);
    if ([400, 405, 414, 421].includes(status)) throw new FollowError('refused', `the server answers ${status}`);
    return status === 404 ? 'absent' : status >= 500 ? `the server answers ${status}` : 'no WebSocket';
}

// The query is added to by hand: `searchParams` would write the caller's own part anew.
function address(target, scheme, parameters) {
    const url = new URL(target);
    url.protocol = scheme + (/^(https|wss):$/.test(target.protocol) ? 's:' : ':');
    url.hash = '';
    const given = Object.entries(parameters).filter(([, value]) => value !== undefined);
    url.search += (url.search ? '&' : '?') + given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('&');
    return url.href;
}

function sleep(ms, signal) {
    return new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(signal.reason);
        const stop = () => {
            clearTimeout(timer);
            reject(signal.reason);
        };
        const timer = setTimeout(() => {
            signal?.removeEventListener('abort', stop);
            resolve();
        }, ms);
        signal?.addEventListener('abort', stop, { once: true });
    });
}
