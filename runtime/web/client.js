/** The page's side of the worker: each call is a promise, with progress and a way to stop it. */

export class Client {
  /** @param {{note?: (text: string) => void, failed?: (text: string) => void}} listeners failed: the worker itself cannot go on */
  constructor({ note = () => {}, failed = () => {} } = {}) {
    this._calls = new Map();
    this._next = 0;
    this._worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this._worker.onmessage = ({ data }) => {
      if (data.kind === "note") note(data.text);
      else this._receive(data);
    };
    this._worker.onerror = (event) => failed(event.message || "the model's worker could not start; reload the page");
  }

  /**
   * @param {string} method one of those in worker.js
   * @param {object} values its arguments
   * @param {{progress?: (done: number, total: number) => void, signal?: AbortSignal}} options
   */
  call(method, values, { progress = () => {}, signal } = {}) {
    const id = this._next++;
    return new Promise((resolve, reject) => {
      this._calls.set(id, { resolve, reject, progress });
      this._worker.postMessage({ ...values, id, method });
      signal?.addEventListener("abort", () => this._worker.postMessage({ id, method: "cancel" }));
    });
  }

  close() {
    this._worker.terminate();
  }

  _receive({ id, kind, ...data }) {
    const call = this._calls.get(id);
    if (!call) return;
    if (kind === "progress") {
      call.progress(data.done, data.total);
      return;
    }
    this._calls.delete(id);
    if (kind === "done") call.resolve(data.result);
    else call.reject(Object.assign(new Error(data.message), { name: data.name }));
  }
}
