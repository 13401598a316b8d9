// A product service in miniature: it tells a user that an order has shipped, by REST.
//
// Usage: NEXUS_TOKEN=… node dist/service.js USER ORDER

const [user, order] = process.argv.slice(2);
if (!user || !order) throw new Error('usage: service.js USER ORDER');
const base = process.env.NEXUS_URL ?? 'http://localhost:3000';

function send(): Promise<Response> {
  return fetch(base + '/notifications', {
    method: 'POST',
    headers: {
      'Authorization': `Bearer ${process.env.NEXUS_TOKEN}`, // a token of scope publish
      'Content-Type': 'application/json',
      // It names what happened. A repeat within five minutes is the same event and gets the same id.
      'Idempotency-Key': `order-${order}-shipped`,
    },
    body: JSON.stringify({
      userId: user, // whom it is for
      title: `Order ${order} has shipped`,
      body: 'It will arrive tomorrow.',
      type: 'SYSTEM', // one of the eight types
      data: { orderId: order }, // whatever the client needs beside; optional
    }),
  });
}

// Without an answer, with 429 or a 5xx it is not known to be in the log. Because of the key it is safe to send again.
for (let attempt = 1; ; attempt++) {
  const answer = await send().catch((error: Error) => error);
  if (answer instanceof Response) {
    if (answer.status === 202) { // the log has it
      const { id } = (await answer.json()) as { id: string };
      console.log(`sent: order ${order} to ${user} (${id})`);
      break;
    }
    if (answer.status < 500 && answer.status !== 429) throw new Error(`refused: ${answer.status} ${await answer.text()}`);
  }
  if (attempt === 5) throw new Error(`not sent; it is safe to try again: ${answer instanceof Response ? answer.status : answer}`);
  await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** attempt));
}
