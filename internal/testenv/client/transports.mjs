// Drives the real socket.io-client over every transport against a running server.
// Usage: node transports.mjs BASE TOKENS. Exit code 0: all was seen.
import { io } from 'socket.io-client';
import { createRequire } from 'node:module';

const [base, tokenText] = process.argv.slice(2);
const tokens = JSON.parse(tokenText);
const old = createRequire(import.meta.url)('socket.io-client-v2');

function fail(message) { process.stderr.write(message + '\n'); process.exit(1); }
process.on('unhandledRejection', (e) => fail(e.stack));
setTimeout(() => fail('took too long'), 30000).unref();
const once = (emitter, event) => new Promise((r) => emitter.once(event, r));

async function session(ns, user, options) {
  const s = io(base + ns, { query: { userId: user, token: tokens[user] }, forceNew: true, ...options });
  s.on('connect_error', (e) => fail(`${ns} ${user}: ${e.message}`));
  await once(s, 'connected');
  return s;
}

for (const [name, options, wanted] of [
  ['default options', {}, 'websocket'],
  ['polling alone', { transports: ['polling'] }, 'polling'],
  ['websocket alone', { transports: ['websocket'] }, 'websocket'],
]) {
  const alice = await session('/ws', 'alice', options), bob = await session('/ws', 'bob', options);
  const got = [];
  bob.on('message:new', (m) => got.push(m.content));
  // Messages flow while the transport changes beneath them.
  const sent = [];
  for (let n = 0; n < 40; n++) {
    sent.push(`${name} ${n}`);
    const ack = await alice.emitWithAck('sendMessage', { receiverId: 'bob', content: `${name} ${n}`, clientMessageId: `${name}-${n}` });
    if (!ack.ok) fail(`${name}: ${JSON.stringify(ack)}`);
  }
  while (got.length < sent.length) await new Promise((r) => setTimeout(r, 10));
  if (got.join() !== sent.join()) fail(`${name}: bob got ${got}`);
  for (const s of [alice, bob]) {
    const transport = s.io.engine.transport.name;
    if (transport !== wanted) fail(`${name}: the transport is ${transport}`);
  }
  // Binary data goes as base64.
  const bytes = await alice.emitWithAck('sendMessage', { receiverId: 'bob', content: Buffer.from([1, 2, 3]), clientMessageId: `${name}-binary` });
  if (!bytes.ok) fail(`${name}: binary: ${JSON.stringify(bytes)}`);
  while (got.at(-1) !== 'AQID') await new Promise((r) => setTimeout(r, 10));
  // A payload beyond maxPayload is split by the client, a frame beyond it closes the session, which comes back.
  const big = await alice.emitWithAck('sendMessage', { receiverId: 'bob', content: 'x'.repeat(40000) });
  if (big.error?.code !== 'too_large') fail(`${name}: too large: ${JSON.stringify(big)}`);
  const gone = once(alice, 'disconnect'), back = once(alice, 'connected');
  alice.emit('sendMessage', { receiverId: 'bob', content: 'x'.repeat(1100000) });
  await gone;
  await back;
  alice.disconnect();
  bob.disconnect();
}

// Two namespaces over one session that begins with polling.
const manager = await session('/dashboard', 'alice', {});
const second = manager.io.socket('/ws', { auth: { userId: 'alice', token: tokens.alice } });
await once(second, 'connected');
if (second.io.engine.id !== manager.io.engine.id) fail('two sessions for two namespaces');
second.disconnect();
manager.disconnect();

// A client of protocol 2 is refused, by any transport.
for (const transports of [['polling'], ['websocket']]) {
  const s = old(base + '/dashboard', { transports, reconnection: false, forceNew: true });
  const e = await once(s, 'connect_error');
  const status = e.description?.status ?? e.description;
  if (transports[0] === 'polling' && e.description !== 400) fail(`an older client was told ${status} ${e.message}`);
  s.close();
}
const r = await fetch(base + '/socket.io/?EIO=3&transport=polling');
const refusal = await r.json();
if (r.status !== 400 || refusal.code !== 5 || !refusal.message.startsWith('Unsupported protocol version')) fail(`refusal ${JSON.stringify(refusal)}`);
process.stdout.write('transports: all seen\n');
process.exit(0);
