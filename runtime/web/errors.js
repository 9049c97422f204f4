/** Errors that are shown to a person. Each message says what was expected, what came, and what to do. */

/** A bundle that is damaged or that this page cannot use. */
export class BundleError extends Error {
  name = "BundleError";
}

/** A file that is no photo, or one that is too large. */
export class PhotoError extends Error {
  name = "PhotoError";
}

/** A device that cannot run the model, or computes something else. */
export class DeviceError extends Error {
  name = "DeviceError";
}

/** The memory of a call ran out. Smaller tiles may help. */
export class OutOfMemory extends DeviceError {
  name = "OutOfMemory";
}

/** The graphics card went away while it computed. */
export class DeviceLost extends DeviceError {
  name = "DeviceLost";
}

/** The person stopped the work. */
export class Cancelled extends Error {
  name = "Cancelled";
  constructor() {
    super("Stopped.");
  }
}

const MEMORY_SIGNS =
  /out of memory|failed to allocate|bad_alloc|bad allocation|allocation failed|could not allocate|cannot enlarge memory|\boom\b/i;

/** Whether an error comes from an allocator, by its message: its type does not tell. */
export function lacksMemory(error) {
  return error instanceof OutOfMemory || MEMORY_SIGNS.test(String(error?.message ?? error));
}

/** The first line of an error, short enough for a sentence. */
export function firstLine(error) {
  return String(error?.message ?? error).trim().split("\n")[0].slice(0, 300);
}
