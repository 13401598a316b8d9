// Drives the real socket.io-client's connection state recovery against a running server.
// Usage: node recovery.mjs BASE TOKENS. Exit code 0: all was seen.
import { io } from 'socket.io-client';

const [base, tokenText] = process.argv.slice(2);
const tokens = JSON.parse(tokenText);

function fail(message) { process.stderr.write(message + '\n'); process.exit(1); }
process.on('unhandledRejection', (e) => fail(e.stack));
setTimeout(() => fail('took too long'), 40000).unref();
const once = (emitter, event) => new Promise((r) => emitter.once(event, r));

async function post(path, body, user = 'service') {
  const r = await fetch(base + path, { method: 'POST', body: JSON.stringify(body), headers: { authorization: `Bearer ${tokens[user]}`, 'content-type': 'application/json' } });
  if (r.status !== 202) fail(`${path}: ${r.status} ${await r.text()}`);
}
const notice = (to, title) => post('/notifications', { ...to, title, body: '', type: 'SYSTEM' });

for (const options of [{}, { transports: ['polling'] }, { transports: ['websocket'] }]) {
  const name = JSON.stringify(options);
  const dashboard = io(base + '/dashboard', { query: { userId: 'alice', token: tokens.alice }, forceNew: true, ...options });
  const chat = io(base + '/ws', { query: { userId: 'alice', token: tokens.alice }, forceNew: true, ...options });
  const got = [], welcomes = [];
  const offsets = [];
  for (const s of [dashboard, chat]) {
    s.on('offset', (o) => offsets.push(o));
    s.onAny((event, ...args) => { if (args.length !== 1) fail(`${name}: ${event} has ${args.length} arguments`); });
  }
  dashboard.on('connected', (d) => welcomes.push(d.recovered));
  dashboard.on('notification', (d) => got.push(d.title));
  chat.on('message:new', (d) => got.push(d.content));
  await Promise.all([once(dashboard, 'connected'), once(chat, 'connected')]);
  if (dashboard.recovered) fail(`${name}: recovered at first`);
  await dashboard.emitWithAck('subscribe', { channels: ['news'] });
  await notice({ userId: 'alice' }, 'first');
  await post('/messages', { receiverId: 'alice', content: `${name} chat 1`, clientMessageId: `${name}1` }, 'bob');
  while (got.length < 2) await new Promise((r) => setTimeout(r, 10));
  const back = Promise.all([once(dashboard, 'connected'), once(chat, 'connected')]);
  const gone = Promise.all([once(dashboard, 'disconnect'), once(chat, 'disconnect')]);
  dashboard.io.engine.close();
  chat.io.engine.close();
  await gone;
  await notice({ userId: 'alice' }, 'missed');
  await notice({ channel: 'news' }, 'missed news');
  await post('/messages', { receiverId: 'alice', content: `${name} chat 2`, clientMessageId: `${name}2` }, 'bob');
  await back;
  if (!dashboard.recovered || !chat.recovered || welcomes.at(-1) !== true) fail(`${name}: recovered ${dashboard.recovered} ${chat.recovered} ${welcomes}`);
  await notice({ channel: 'news' }, 'new news'); // the channel is still subscribed
  while (got.length < 6) await new Promise((r) => setTimeout(r, 10));
  if (!offsets.length || !offsets.includes(dashboard._lastOffset)) fail(`${name}: the offset of the client is none of ${offsets}`);
  const want = ['first', `${name} chat 1`, 'missed', 'missed news', `${name} chat 2`, 'new news'];
  if ([...got].sort().join() !== want.sort().join()) fail(`${name}: got ${got}`);

  // A session that the server does not know any more begins anew.
  dashboard._pid = 'unknown';
  const anew = once(dashboard, 'connected');
  dashboard.io.engine.close();
  await anew;
  if (dashboard.recovered || welcomes.at(-1) !== false) fail(`${name}: an unknown session was recovered`);
  if ((await dashboard.emitWithAck('subscribe', { channels: [] })).channels.length !== 0) fail(`${name}: channels of an unknown session`);
  dashboard.disconnect();
  chat.disconnect();
}
process.stdout.write('recovery: all seen\n');
process.exit(0);
