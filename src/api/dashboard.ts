import { readFile } from 'node:fs/promises';
import type { FastifyInstance } from 'fastify';

/** The status page: a few static files beside this package, read when first asked for. */
const PAGES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/dashboard.js': ['dashboard.js', 'text/javascript; charset=utf-8'],
  '/dashboard.css': ['dashboard.css', 'text/css; charset=utf-8'],
  '/icon.svg': ['icon.svg', 'image/svg+xml'],
} as const;

const CONTENT_SECURITY_POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

export function servePage(app: FastifyInstance): void {
  for (const [path, [file, type]] of Object.entries(PAGES)) {
    app.get(path, { config: { access: 'read' } }, async (_request, reply) => {
      const bytes = await readFile(new URL(`../dashboard/${file}`, import.meta.url));
      return reply.headers({ 'content-type': type, 'content-security-policy': CONTENT_SECURITY_POLICY }).send(bytes);
    });
  }
}
