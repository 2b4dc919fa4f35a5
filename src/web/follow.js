// Follows a resource of httpfstream from a web page: the stored bytes, then new ones as they arrive, then the end.
//
//     import { follow, followText } from '/.httpfstream/follow.js';
//
//     for await (const text of followText('/build.log')) log.append(text);
//
//     for await (const event of follow('/build.log', { lines: 100 })) {
//         if (event.type === 'data') console.log(event.offset, event.bytes);   // its position, and a Uint8Array
//         else console.log(event.state);
//     }
//
// It reconnects by itself and resumes where it was, so that no byte is lost or repeated. States:
//
//     connecting                        with `attempt` (0 is the first) and, from the second attempt on, `reason`
//     live, lost, parked                the resource is open
//     finished, interrupted, sealed     the resource is closed; data may still follow, unless there is `end: true`
//
// The first state after each `connecting` has the `offset` where the data continues, and the `life`. The last event of
// all is one of the closed states, with `end: true` and `length`.
//
// `followText` yields strings that never split a character. It throws a FollowError `interrupted` if the appender was
// lost for good. For both states and text, use `follow` and a TextDecoder: `decode(event.bytes, { stream: true })`.
//
// Options: one of `offset` (start at this byte), `tail` (at the last bytes), `lines` (at the last lines); `life`
// (follow only this life, to resume from an offset of an earlier page load); `wait` (how many seconds to wait for an
// absent resource); `signal` (an AbortSignal: the loop throws its reason, as fetch does); `credentials` (as for fetch;
// used for the request that finds out why a WebSocket failed). A URL may be relative, and may have a query. Leaving the
// loop closes the connection.
//
// A failure that a retry can't fix is thrown as a FollowError, whose `code` is one of: absent; unauthorized; forbidden;
// life (the resource was deleted and recreated, so its bytes are not those seen before); past-end; refused; closed (by
// the server, for good); protocol; interrupted.

/** The reason why a follow failed. */
export class FollowError extends Error {
    name = 'FollowError';
    constructor(code, message) {
        super(message);
        this.code = code;
    }
}

// The most unread data, in bytes. A browser's WebSocket has no backpressure, so everything that arrives is queued until
// the loop takes it. Beyond this limit the connection is closed; once the queue is empty, another connection resumes.
const MAX_UNREAD = 32 * 1024 * 1024;
const CLOSED = ['finished', 'interrupted', 'sealed'];
const FINAL = { 401: 'unauthorized', 403: 'forbidden', 404: 'absent', 412: 'life', 416: 'past-end' };

/** Follows a resource. Returns an async iterator of its data and states. */
export async function* follow(url, { offset, tail, lines, life, wait = 0, signal, credentials } = {}) {
    const target = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    let deadline = Date.now() + wait * 1000;
    let reason;
    let isEmpty = false; // Seen without a byte: such a resource may be dropped and created anew, with another life.
    if (tail === undefined && lines === undefined) offset ??= 0; // Otherwise the server says where the data begins.
    for (let attempt = 0; ; attempt++) {
        if (attempt >= 0) yield { type: 'state', state: 'connecting', attempt, ...(reason && { reason }) };
        signal?.throwIfAborted();
        // Half of the delay is random, so that followers don't all reconnect at once after a restart.
        if (attempt > 0) await sleep(Math.min(15000, 125 * 2 ** attempt) * (1 + Math.random()) / 2, signal);
        signal?.throwIfAborted();
        const seconds = Math.ceil((deadline - Date.now()) / 1000);
        const parameters = { verb: 'FOLLOW', offset, tail, lines, life };
        const socketAddress = address(target, 'ws', { ...parameters, wait: seconds > 0 ? seconds : undefined });
        let opened, last;
        for await (last of socketEvents(socketAddress, signal)) {
            if (last.type !== 'message') break;
            if (typeof last.data !== 'string') {
                if (!opened) throw new FollowError('protocol', 'data before the first message');
                const bytes = new Uint8Array(last.data);
                [life, isEmpty] = [opened.life, false];
                yield { type: 'data', bytes, offset };
                offset += bytes.length;
                attempt = 0; // Delivering data counts as a success; so does lasting for 5 s, below.
                continue;
            }
            const message = parsed(last.data);
            const end = opened && CLOSED.includes(message.state);
            const at = end ? message.length : message.offset;
            if (life && message.life && message.life !== life) throw new FollowError('life', 'this is another life');
            if ((end || !opened) && at !== (offset ?? at)) {
                throw new FollowError('protocol', `the server is at offset ${at}, not ${offset}`);
            }
            if (!opened) {
                opened = { life: message.life, at: Date.now() };
                offset = message.offset;
                tail = lines = undefined; // The offset is known now, and the resource exists.
                deadline = 0;
                isEmpty = offset === 0;
                if (!isEmpty) life = message.life;
            }
            if (message.state) yield { type: 'state', ...message, ...(end && { end }) };
            if (end) return;
        }
        if ([4001, 4003].includes(last.code)) throw new FollowError('closed', last.reason || 'by the server, for good');
        if (opened && Date.now() - opened.at > 5000) attempt = 0;
        if (last.type === 'full') attempt = -2;
        else if (opened) reason = last.reason || 'the connection broke';
        else {
            const isWaiting = isEmpty || Date.now() < deadline;
            reason = await failureReason(address(target, 'http', parameters), { credentials, signal }, isWaiting);
        }
    }
}

/** Follows a resource as text. Returns an async iterator of strings. */
export async function* followText(url, options) {
    const decoder = new TextDecoder();
    for await (const { bytes, end, state } of follow(url, options)) {
        const text = decoder.decode(bytes, { stream: !end });
        if (text) yield text;
        if (end && state === 'interrupted') throw new FollowError(state, 'the appender was lost: the text is incomplete');
    }
}

// The events of a WebSocket in order. The last one is its `close`, or `full` if too much was unread.
async function* socketEvents(address, signal) {
    const size = ({ data }) => (data?.byteLength ?? data?.length ?? 0) + 100;
    let queue = [], unread = 0, wake;
    const add = (event) => {
        queue.push(event);
        unread += size(event);
        if (unread > MAX_UNREAD && event.type === 'message') {
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

// Finds out why a handshake failed, which browsers don't say, by a HEAD request for the same resource. Throws if a
// retry can't help.
async function failureReason(address, options, isWaiting) {
    const response = await fetch(address, { method: 'HEAD', cache: 'no-store', ...options }).catch(() => undefined);
    options.signal?.throwIfAborted();
    if (!response) return 'no connection'; // The server is unreachable, or CORS doesn't allow the request.
    const reason = `no WebSocket, and HEAD is answered with ${response.status}`;
    const code = [400, 405, 414, 421].includes(response.status) ? 'refused' : FINAL[response.status];
    if (code && !(code === 'absent' && isWaiting)) throw new FollowError(code, reason);
    return reason;
}

// The query is extended by hand: `searchParams` would reencode the caller's own part.
function address(target, scheme, parameters) {
    const url = new URL(target);
    url.protocol = url.protocol.replace(/^(http|ws)/, scheme);
    url.hash = '';
    const given = Object.entries(parameters).filter(([, value]) => value !== undefined);
    url.search += (url.search ? '&' : '?') + new URLSearchParams(given);
    return url.href;
}

function sleep(ms, signal) {
    const elapsed = AbortSignal.timeout(ms);
    return new Promise((resolve) => {
        elapsed.addEventListener('abort', resolve);
        signal?.addEventListener('abort', resolve, { signal: elapsed });
    });
}
