"""The checks, a file each; `trainer.dataset.doctor.diagnosis.CHECKS` names them."""
